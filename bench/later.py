"""Measures what bench/results/benchmark.json lacks, and puts it there with commit and date.

    python bench/later.py threads volumes memory      # or some of these; then python bench/pages.py

"threads": the objective on 1, 2, 4, ... threads, and LU-net's step of 8 pairs of 256 x 256 on all;
"volumes": a training step and a prediction in 3-D, on all threads and on one; "memory": what a step
and a prediction hold, of rows that do not say so. OMP_NUM_THREADS says how many threads there are.
Under another torch or on another processor nothing is measured: then `make bench`, all of it.
"""

import argparse
import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from diffreg.benchmark import kept
from diffreg.benchmark.network import step_memory, training_step
from diffreg.benchmark.network_rows import prediction_of_a_volume, training_on_a_volume
from diffreg.benchmark.prediction import prediction_memory
from diffreg.benchmark.run import METHOD, machine, on_threads, write

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
SAME = ("model", "shape", "threads")


def merged(rows: Iterable[Row], measured: Iterable[Row], run: Row) -> list[Row]:
    """The rows, and behind them what was measured in another run, in place of the same work."""
    later = [row | {"another_run": run} for row in measured]
    replaced = [[row[name] for name in SAME] for row in later]
    return [row for row in rows if [row[name] for name in SAME] not in replaced] + later


def add_threads(result: Row, run: Row) -> None:
    number = torch.get_num_threads()
    if number < 2:
        raise SystemExit("threads cannot be compared: this run has one")
    rows = on_threads(number, False, print)
    result["threads"] = [row | {"another_run": run} for row in rows]
    step = training_step("lunet", 256, 8, "cpu", False, 3.0)
    result["training"] = merged(result["training"], [step], run)


def add_volumes(result: Row, run: Row) -> None:
    for part, measure in (
        ("training", training_on_a_volume),
        ("prediction", prediction_of_a_volume),
    ):
        result[part] = merged(result[part], measure("cpu", print), run)


def add_memory(result: Row, run: Row) -> None:
    for part, measure in (("training", step_memory), ("prediction", prediction_memory)):
        for row in result[part]:
            if "peak_mebibytes" not in row and "spread" in row:  # not that from file to file
                print(f"memory: {part}, {row['model']}, {row['shape']}", flush=True)
                row |= {"peak_mebibytes": measure(row), "memory_of_another_run": run}


PARTS = {"threads": add_threads, "volumes": add_volumes, "memory": add_memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    options = parser.parse_args()
    result = json.loads((RESULTS / "benchmark.json").read_text())
    place = {"torch": result["machine"]["versions"]["torch"]}
    place["processor"] = result["machine"]["processor"]
    if place != kept.here():
        raise SystemExit(f"benchmark.json is of {place}, here is {kept.here()}: make bench")
    run = {"commit": machine("cpu")["commit"], "date": datetime.date.today().isoformat()}
    for part in options.parts:
        PARTS[part](result, run)
    result["method"] = METHOD
    write(result, RESULTS)


if __name__ == "__main__":
    main()
