"""When a result is to be doubted: the limits of diffreg/registration/judgement.py, and how good.

    python bench/warnings/study.py --data FOLDER    # FOLDER holds cardiac/ and ctmr/ (docs/data.md)
    python bench/warnings/study.py                  # the heads that ship, and nothing left out

Each limit is twice what the worst good pair shows. What is counted is counted on a subject with
limits from the others. Written to bench/results/warnings.json; what was registered is kept in
build/warnings, and the run goes on where it was stopped.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from aligned import ROOT, aligned_pairs
from limits import FACTOR, limits_from, shown
from signs_of_pairs import good_rows, misaligned_rows, network_rows, other_rows

from diffreg.registration.judgement import LIMITS, Limits, sentences
from diffreg.registration.signs import Elsewhere, Motion, Signs

RESULTS = ROOT / "bench" / "results" / "warnings.json"
KINDS = ("good", "misaligned", "recovered", "network", "other")
SEED = 2  # of the misaligned pairs that count
FACTORS = (1.25, 1.5, 2.0, 2.5, 3.0)


def rows_of(data: Path | None, seed: int) -> list[dict]:
    """All pairs, measured; the seed is that of the misaligned ones."""
    pairs, rows = aligned_pairs(data), []
    for collection in dict.fromkeys(pair.collection for pair in pairs):
        of_it = [pair for pair in pairs if pair.collection == collection]
        rows += [*good_rows(of_it), *misaligned_rows(of_it, seed)]
        rows += [*network_rows(of_it), *other_rows(of_it)]
    return rows


def signs_in(row: dict) -> Signs:
    values = dict(row["signs"])
    elsewhere = values["elsewhere"] and Elsewhere(**values["elsewhere"])
    return Signs(**{**values, "motion": Motion(**values["motion"]), "elsewhere": elsewhere})


def judge(rows: list[dict], factor: float = FACTOR) -> list[list[str]]:
    """What each row is warned of, by limits from the other subjects' good pairs."""
    limits = {}
    for subject in {row["subject"] for row in rows}:
        good = [row for row in rows if row["kind"] == "good"]
        others = [row for row in good if row["subject"] != subject]
        limits[subject] = limits_from([signs_in(row) for row in others or good], factor)
    return [list(sentences(signs_in(row), limits[row["subject"]])) for row in rows]


def counts(rows: list[dict]) -> dict:
    """kind -> collection, "all" among them -> pairs warned of, pairs."""
    found: dict = {}
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        found[kind] = {}
        for name in [*dict.fromkeys(row["collection"] for row in rows), "all"]:
            some = [row for row in of_kind if name in (row["collection"], "all")]
            found[kind][name] = [sum(bool(row["warned"]) for row in some), len(some)]
    return found


def table(found: dict) -> str:
    names = list(found["good"])
    lines = ["| pairs | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for kind in KINDS:
        cells = [f"{n} of {of}" for n, of in found[kind].values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(rows: list[dict], found: dict, limits: Limits) -> None:
    """One line a pair."""
    by_factor = {}
    for factor in FACTORS:
        warned = judge(rows, factor)
        some = [{**row, "warned": names} for row, names in zip(rows, warned, strict=True)]
        by_factor[factor] = {kind: counted["all"] for kind, counted in counts(some).items()}
    agreements = {name: getattr(limits, name)._asdict() for name in ("ncc", "information")}
    head = {
        "limits": {**limits._asdict(), **agreements},
        "left_out": "one subject at a time",
        "warned": found,
        "signs": {kind: signs_of_kind(rows, kind) for kind in KINDS},
        "by_factor": by_factor,
        "pairs": [],
    }
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items())
    lines = ",\n".join(json.dumps(shown(row)) for row in rows)
    RESULTS.write_text("{\n" + text[:-1] + "\n" + lines + "\n]}\n")


def signs_of_kind(rows: list[dict], kind: str) -> dict[str, int]:
    """How many pairs have which sign."""
    return Counter(name for row in rows if row["kind"] == kind for name in row["warned"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="holds cardiac/ and ctmr/; none: heads alone")
    parser.add_argument("--seed", type=int, default=SEED, help="of other misaligned pairs, to look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_of(options.data, options.seed)
    for row, warned in zip(rows, judge(rows), strict=True):
        row["warned"] = warned
    limits = limits_from([signs_in(row) for row in rows if row["kind"] == "good"])
    found = counts(rows)
    print(table(found))
    if len({row["subject"] for row in rows}) == 1:
        print("heads alone, judged by limits from those same pairs; nothing is written")
        return
    if limits != LIMITS:
        print(f"diffreg/registration/judgement.py has other limits than these:\n{limits}")
    if options.seed == SEED:
        write(rows, found, limits)


if __name__ == "__main__":
    main()
