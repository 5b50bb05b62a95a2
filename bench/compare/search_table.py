"""The results of search.py: every setting beside the shipped one, and one chosen on the others."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from family import ACROSS, FEW_EDGES, OTHERS, USUAL, WITHIN
from nested import chosen, patient_means
from search_cases import READERS
from summary import interval

from diffreg.benchmark.run import machine
from diffreg.registration.schedule import COMPOSED_STEPS

RESULTS = Path(__file__).parents[1] / "results"
FAMILY = WITHIN | OTHERS | ACROSS | FEW_EDGES
AS_LONG = 1.25  # times the shipped setting's CPU seconds: what counts as no slower
NAME = "variational_search"
MEASURES = ("score", "dice", "error", "objective", "cpu_s")
Runs = dict[str, dict]  # pair -> run
Row = dict[str, Any]
ABOUT = f"""\
# The settings of `register`, and their neighbours

Written by bench/compare/search.py. Every pair is registered with every setting, each of which
changes a thing or two of what `register` does with slices where nothing is said ("{USUAL}", the
first of each table). It is what it did with volumes, too, until 30 November 2026; they begin with
composed steps since, now with "composed steps {", ".join(map(str, COMPOSED_STEPS))}". q is how many
of the finest voxels a level's is long, whose fourth power the bending of a level is multiplied by.
Images are prepared as by `register`; pairs are on one grid, without an affine start. Numbers of
iterations and of composed steps are those of the finest three levels; where an image bears two, of
those (60 iterations each where there are no composed steps). "Two starts": from a registration with
a quarter of the bending as well, on the finest level; the lower objective stays. "One level fewer"
is without the coarsest.

Accuracy is the Dice of the labels that both images have (heads 130, in slices those of 20 voxels or
more), and of MR / simulated CT minus the mean error of the displacement in the body, voxels. The
objective is that of the first for all, without the price of leaving. Means over people, 95 %
bootstrap intervals over them; of fewer than five there is none. A person's setting is **chosen** on
all others: the most accurate one, or the most accurate of those that take {AS_LONG} times the CPU
seconds of the first at most. CPU seconds are of the search alone, on one thread of a machine
with other work.
"""


def scored(run: dict) -> dict:
    """With its accuracy, more of which is better."""
    return run | {"score": -run["error"] if "error" in run else run["dice"]}


def complete(runs: Iterable[dict]) -> dict[str, dict[str, Runs]]:
    """group -> setting -> pair -> run, over the pairs that every setting of the group has."""
    found: dict[str, dict[str, Runs]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        found[run["group"]][run["name"]][run["pair"]] = scored(run)
    whole = {}
    for group in READERS:
        settings = {name: found[group][name] for name in FAMILY if name in found[group]}
        common = set.intersection(*map(set, settings.values())) if settings else set()
        if common:
            whole[group] = {
                name: {pair: each[pair] for pair in sorted(common)}
                for name, each in settings.items()
            }
    return whole


def versus(a: Mapping[str, float], b: Mapping[str, float]) -> Row:
    """The mean of a minus b over people, and its interval."""
    each = [a[person] - b[person] for person in a]
    return {"mean": float(np.mean(each)), "interval": interval(each)}


def row_of(name: str, pairs: Runs, usual: Runs) -> Row:
    """A setting on a group."""
    people = {m: patient_means(pairs, m) for m in MEASURES if m in next(iter(pairs.values()))}
    return {
        "setting": name,
        "changes": next(iter(pairs.values()))["setting"],
        "mean": {measure: float(np.mean(list(each.values()))) for measure, each in people.items()},
        "people": people,
        "minus_shipped": {
            measure: versus(each, patient_means(usual, measure)) for measure, each in people.items()
        },
        "folded_cells": sum(run["folded_cells"] for run in pairs.values()),
        "smallest_determinant": min(run["smallest_determinant"] for run in pairs.values()),
    }


def choice(settings: Mapping[str, Runs]) -> Row | None:
    """The setting chosen without a person, on that person; None of fewer than two people."""
    people = patient_means(settings[USUAL], "score")
    if len(people) < 2:
        return None
    # `nested.chosen` goes by Dice.
    by_score = {
        name: {pair: run | {"dice": run["score"]} for pair, run in pairs.items()}
        for name, pairs in settings.items()
    }
    taken = chosen(by_score)
    found = {
        measure: {p: patient_means(settings[name], measure)[p] for p, name in taken.items()}
        for measure in ("score", "objective", "cpu_s")
    }
    return {
        "settings": len(settings),
        "chosen": Counter(taken.values()).most_common(),
        "mean": {measure: float(np.mean(list(each.values()))) for measure, each in found.items()},
        "minus_shipped": versus(found["score"], people),
    }


def no_slower(settings: Mapping[str, Runs]) -> dict[str, Runs]:
    seconds = {
        name: np.mean([r["cpu_s"] for r in each.values()]) for name, each in settings.items()
    }
    most = AS_LONG * seconds[USUAL]
    return {name: each for name, each in settings.items() if seconds[name] <= most}


def group_of(settings: Mapping[str, Runs]) -> Row:
    usual = settings[USUAL]
    return {
        "pairs": len(usual),
        "people": len(patient_means(usual, "score")),
        "settings": [row_of(name, pairs, usual) for name, pairs in settings.items()],
        "chosen": choice(settings),
        "chosen_no_slower": choice(no_slower(settings)),
    }


def difference(versus_shipped: Row, digits: int = 4) -> str:
    spread = versus_shipped["interval"]
    text = f"{versus_shipped['mean']:+.{digits}f}"
    if spread is None:
        return text
    low, high = spread
    tie = " (tie)" if low <= 0 <= high else ""
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]{tie}"


def lines_of(cells: Iterable[Iterable[str]]) -> list[str]:
    head, *rows = (f"| {' | '.join(row)} |" for row in cells)
    return [head, "|" + " --- |" * (head.count("|") - 1), *rows]


def summary(groups: Mapping[str, Row]) -> list[str]:
    """What choosing gains, a line for each group and kind of choice."""
    head = ["pairs (people)", USUAL, "chosen of", "chosen", "minus it"]
    rows = [[*head, "CPU s, without", "chosen", "how often which"]]
    for group, found in groups.items():
        usual = found["settings"][0]["mean"]
        for kind, limit in (("chosen", "any"), ("chosen_no_slower", "no slower")):
            row = found[kind]
            if row is None:
                continue
            names = ", ".join(f"{name} {count}" for name, count in row["chosen"])
            rows.append([
                f"{group}: {found['pairs']} ({found['people']})", f"{usual['score']:.4f}",
                f"{row['settings']}, {limit}", f"{row['mean']['score']:.4f}",
                difference(row["minus_shipped"]), f"{usual['cpu_s']:.2f}",
                f"{row['mean']['cpu_s']:.2f}", names,
            ])  # fmt: skip
    return lines_of(rows)


def table(found: Row) -> list[str]:
    """Every setting of a group."""
    head = ["setting", "accuracy", "minus the first", "objective", "minus the first"]
    rows = [[*head, "CPU s", "folded cells", "smallest determinant"]]
    for row in found["settings"]:
        mean, less = row["mean"], row["minus_shipped"]
        usual = row["setting"] == USUAL
        rows.append([
            row["setting"], f"{mean['score']:.4f}", "" if usual else difference(less["score"]),
            f"{mean['objective']:.3f}", "" if usual else difference(less["objective"], 3),
            f"{mean['cpu_s']:.2f}", str(row["folded_cells"]), f"{row['smallest_determinant']:.3f}",
        ])  # fmt: skip
    return lines_of(rows)


def page(results: Row) -> str:
    parts = [ABOUT, *summary(results["groups"])]
    for group, found in results["groups"].items():
        parts += ["", f"## {group}: {found['pairs']} pairs, people: {found['people']}", ""]
        parts += [f"{found['processor']}, commit {found['commit']}.", "", *table(found)]
    return "\n".join(parts) + "\n"


def write_results(runs: Iterable[dict], to: Path = RESULTS, name: str = NAME) -> None:
    """NAME.json and .md in `to`, whose groups that were not run again stay."""
    file, about = to / f"{name}.json", machine("cpu")
    of = {name: about[name] for name in ("commit", "processor")}
    groups = json.loads(file.read_text())["groups"] if file.exists() else {}
    groups |= {group: of | group_of(settings) for group, settings in complete(runs).items()}
    results = {"groups": {group: groups[group] for group in READERS if group in groups}}
    file.write_text(json.dumps(results, indent=1) + "\n")
    (to / f"{name}.md").write_text(page(results))
