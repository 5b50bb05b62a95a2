"""What L-BFGS's memory and its matrix cost in convergence, at the same iterations.

    python bench/compare/histories.py --data DIR

Heads at 2 mm and hearts by `register`'s default settings, with the optimiser's parts replaced. A
line of JSON each is appended to --runs, where a stopped run goes on; at the end, prints a table and
writes bench/results/variational_histories.{json,md}. DIR is the folder of docs/data.md.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import journal
import numpy as np
import torch
from family import reached
from nested import patient_means
from search_cases import READERS, Case
from search_table import difference, lines_of, versus

from diffreg.benchmark.run import machine
from diffreg.registration import descent, register_variational

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
GROUPS = ("heads, 2 mm", "hearts, volumes")
USUAL = "3 pairs"
MEASURES = ("objective", "dice", "evaluations", "cpu_s")


class Rounded(descent.History):
    """The steps and the gradients' changes to the precision of bfloat16."""

    def add(self, before: descent.Pair, after: descent.Pair) -> descent.Pair:
        change, bend = super().add(before, after)
        for each in (change, bend):
            each.copy_(each.bfloat16())
        self.curvatures[-1] = torch.dot(change, bend)
        return change, bend


def first_matrix() -> Callable[..., torch.Tensor]:
    """The similarity's part of the matrix as it was after the first step of a level."""
    measured, first = descent._data_curvature, {}

    def of_level(change, curvature, regulariser, before) -> torch.Tensor:
        if first.get("of") is not regulariser:
            first.update(of=regulariser, data=measured(change, curvature, regulariser, before))
        return first["data"]

    return of_level


def kept(pairs: int, **more) -> dict:
    """What is replaced: so many pairs of volumes, and `more`."""
    return {"MEMORY": {2: 10, 3: pairs}, **more}


VARIANTS: dict[str, Callable[[], dict]] = {
    USUAL: lambda: kept(3),
    "5 pairs": lambda: kept(5),
    "6 pairs": lambda: kept(6),
    "10 pairs": lambda: kept(10),
    "3 pairs in bfloat16": lambda: kept(3, History=Rounded),
    "6 pairs in bfloat16": lambda: kept(6, History=Rounded),
    "10 pairs in bfloat16": lambda: kept(10, History=Rounded),
    "3 pairs, the first matrix of a level": lambda: kept(3, _data_curvature=first_matrix()),
}


def measured(case: Case, replaced: dict) -> dict:
    """A registration with these parts of the optimiser."""
    counts: Counter[str] = Counter()
    with mock.patch.multiple(descent, **replaced):
        begin = time.thread_time()
        images = case.moving, case.fixed, case.objective
        u = register_variational(*images, mask=case.mask, counts=counts)
        seconds = time.thread_time() - begin
    found = {"objective": reached(case, u), "dice": case.accuracy(u)["dice"], "cpu_s": seconds}
    return found | {"evaluations": counts["evaluations"]}


def rows_of(found: dict[str, dict[str, dict]]) -> list[dict]:
    """Of variant -> pair -> what was measured: means over people, and more than by USUAL."""
    people = {
        name: {measure: patient_means(pairs, measure) for measure in MEASURES}
        for name, pairs in found.items()
    }
    usual, rows = people[USUAL], []
    for name, measures in people.items():
        reached = {
            person: 100 * (value - usual["objective"][person]) / abs(usual["objective"][person])
            for person, value in measures["objective"].items()
        }
        rows.append({
            "variant": name,
            "people": len(reached),
            "mean": {name: float(np.mean(list(each.values()))) for name, each in measures.items()},
            "objective_percent": versus(reached, dict.fromkeys(reached, 0.0)),
            "dice": versus(measures["dice"], usual["dice"]),
        })  # fmt: skip
    return rows


ABOUT = """\
# What L-BFGS keeps: the objective reached after the same iterations

Written by bench/compare/histories.py: `register`'s default settings, pairs on one grid; the
objective is without the price of leaving. Means over people; by how much the objective (percent)
and Dice are above those of three pairs, with 95 % bootstrap intervals over people. Evaluations and
CPU seconds of the search, on one thread of a machine with other work. Rounded to bfloat16, the
history takes half the memory: six pairs as much as three.
"""


def page(results: dict) -> str:
    about, rows = results["machine"], []
    head = ["images (people)", "kept", "objective", "more, %", "Dice", "more"]
    for group, each in results["groups"].items():
        for row in each:
            mean, usual = row["mean"], row["variant"] == USUAL
            rows.append([
                f"{group} ({row['people']})", row["variant"], f"{mean['objective']:.3f}",
                "" if usual else difference(row["objective_percent"], 2), f"{mean['dice']:.4f}",
                "" if usual else difference(row["dice"]), f"{mean['evaluations']:.0f}",
                f"{mean['cpu_s']:.2f}",
            ])  # fmt: skip
    told = f"{about['processor']}, commit {about['commit']}."
    return "\n".join([ABOUT, told, "", *lines_of([[*head, "evaluations", "CPU s"], *rows])]) + "\n"


def key(run: dict) -> tuple[str, ...]:
    return run["group"], run["variant"], run["pair"]


def run_all(data: Path, path: Path) -> None:
    done = journal.read(path, key)
    for group in GROUPS:
        for case in READERS[group](data):
            for name, replaced in VARIANTS.items():
                run = {"group": group, "variant": name, "pair": case.name}
                if key(run) not in done:
                    journal.append(run | measured(case, replaced()), path)


def write_results(runs: Iterable[dict], to: Path = RESULTS) -> None:
    """variational_histories.json and .md in `to`."""
    found: dict[str, dict] = {group: {name: {} for name in VARIANTS} for group in GROUPS}
    for run in runs:
        found[run["group"]][run["variant"]][run["pair"]] = run
    groups = {group: rows_of(each) for group, each in found.items() if all(each.values())}
    results = {"machine": machine("cpu"), "groups": groups}
    (to / "variational_histories.json").write_text(json.dumps(results, indent=1) + "\n")
    (to / "variational_histories.md").write_text(page(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "variational_histories.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.data / "volumes" / "pairs.csv").exists():
        print(f"skipped: there is no volumes/pairs.csv in {options.data}")
        return
    run_all(options.data, options.runs)
    write_results(journal.read(options.runs, key).values())
    print((RESULTS / "variational_histories.md").read_text())


if __name__ == "__main__":
    main()
