"""What L-BFGS's memory and its matrix cost in convergence, at the same iterations.

    python bench/variational/histories.py --data DIR

Four heads at 2 mm and two hearts by `register`'s default settings, with the optimiser's parts
replaced: prints a table, and writes bench/results/variational_histories.{json,md}. DIR is the
folder of docs/data.md.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from family import reached
from search_cases import READERS, Case
from search_table import lines_of

from diffreg.benchmark.run import machine
from diffreg.registration import descent, register_variational

RESULTS = Path(__file__).parents[1] / "results"
PAIRS = {"heads, 2 mm": 4, "hearts, volumes": 2}
USUAL = "3 pairs"
MEASURES = ("objective", "dice", "evaluations", "cpu_s")


class Rounded(descent.History):
    """The steps and the gradients' changes to the precision of bfloat16."""

    def add(self, before: descent.Pair, after: descent.Pair) -> descent.Pair:
        change, bend = super().add(before, after)
        for kept in (change, bend):
            kept.copy_(kept.bfloat16())
        self.curvatures[-1] = torch.dot(change, bend)
        return change, bend


def first_matrix() -> Callable[..., torch.Tensor]:
    """The similarity's part of the matrix as it was after the first step of a level."""
    measured, first = descent._data_curvature, {}

    def kept(change, curvature, regulariser, before) -> torch.Tensor:
        if first.get("of") is not regulariser:
            first.update(of=regulariser, data=measured(change, curvature, regulariser, before))
        return first["data"]

    return kept


VARIANTS: dict[str, Callable[[], dict]] = {
    USUAL: lambda: {"MEMORY": {2: 10, 3: 3}},
    "5 pairs": lambda: {"MEMORY": {2: 10, 3: 5}},
    "10 pairs": lambda: {"MEMORY": {2: 10, 3: 10}},
    "3 pairs in bfloat16": lambda: {"History": Rounded},
    "10 pairs in bfloat16": lambda: {"MEMORY": {2: 10, 3: 10}, "History": Rounded},
    "3 pairs, the first matrix of a level": lambda: {"_data_curvature": first_matrix()},
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
    """Of variant -> pair -> what was measured: means over pairs, and how much above USUAL."""
    usual, rows = found[USUAL], []
    for name, pairs in found.items():
        above = [
            100 * (run["objective"] - usual[pair]["objective"]) / abs(usual[pair]["objective"])
            for pair, run in pairs.items()
        ]
        spread = {"mean": float(np.mean(above)), "from": min(above), "to": max(above)}
        means = {
            measure: float(np.mean([run[measure] for run in pairs.values()]))
            for measure in MEASURES
        }
        rows.append({"variant": name, "pairs": len(pairs), "above_usual_percent": spread, **means})
    return rows


ABOUT = """\
# What L-BFGS keeps: the objective reached after the same iterations

Written by bench/variational/histories.py: `register`'s default settings; the objective is without
the price of leaving; its mean, and by how much it is above that of three pairs, mean over pairs
(from the smallest to the largest). CPU seconds of the search on one thread.
"""


def page(results: dict) -> str:
    about, rows = results["machine"], []
    head = ["group", "kept", "objective", "more than by 3 pairs, %", "Dice", "evaluations", "CPU s"]
    for group, each in results["groups"].items():
        for row in each:
            more = "{mean:+.2f} ({from:+.2f} to {to:+.2f})".format(**row["above_usual_percent"])
            rows.append([
                f"{group}, {row['pairs']} pairs", row["variant"], f"{row['objective']:.3f}", more,
                f"{row['dice']:.4f}", f"{row['evaluations']:.0f}", f"{row['cpu_s']:.2f}",
            ])  # fmt: skip
    told = f"{about['processor']}, commit {about['commit']}."
    return "\n".join([ABOUT, told, "", *lines_of([head, *rows])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    if not (data / "volumes" / "pairs.csv").exists():
        print(f"skipped: there is no volumes/pairs.csv in {data}")
        return
    groups = {}
    for group, count in PAIRS.items():
        cases = list(islice(READERS[group](data), count))
        groups[group] = rows_of({
            name: {case.name: measured(case, replaced()) for case in cases}
            for name, replaced in VARIANTS.items()
        })  # fmt: skip
    results = {"machine": machine("cpu"), "groups": groups}
    (RESULTS / "variational_histories.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "variational_histories.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
