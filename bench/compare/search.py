"""The settings of `diffreg register` and their neighbours, chosen on other people's pairs.

    python bench/compare/search.py run --data DIR
    python bench/compare/search.py run --data DIR --group "heads, 1 mm" --setting "bending / 2"
    python bench/compare/search.py table

`run` registers every pair of the groups with every setting (family.py), appends one line of JSON
each to --runs and goes on where it was stopped. `table` chooses a setting for each person on the
others, and writes bench/results/variational_search.{json,md}, or NAME.{json,md} by --name. DIR is
the folder of docs/data.md.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import journal
import torch
from family import ACROSS, FEW_EDGES, OTHERS, WITHIN, Setting, reached, registered
from search_cases import ACROSS as GROUPS_ACROSS
from search_cases import FEW_EDGES as GROUPS_FEW_EDGES
from search_cases import READERS, Case
from search_table import NAME, write_results

from diffreg.fields import fold_certificate

ROOT = Path(__file__).parents[2]
LIKE_SLICES = ("hearts, slices", "hearts, volumes", "heads, slices")  # whose preset is "slice"


def family_of(group: str) -> dict[str, Setting]:
    if group in GROUPS_ACROSS:
        return ACROSS
    if group in GROUPS_FEW_EDGES:
        return FEW_EDGES
    other = "preset volume" if group in LIKE_SLICES else "preset slice"
    return WITHIN | {other: OTHERS[other]}


def measured(case: Case, setting: Setting) -> dict:
    """One registration: what it reached, how well the labels fit, CPU seconds of the search."""
    begin = time.thread_time()
    u = registered(case, setting)
    seconds = time.thread_time() - begin
    certificate = fold_certificate(u)
    return {
        **case.accuracy(u),
        "objective": reached(case, u),
        "cpu_s": round(seconds, 3),
        "folded_cells": certificate.folded_cells,
        "smallest_determinant": certificate.smallest_determinant,
    }


def key(run: dict) -> tuple[str, ...]:
    return run["group"], run["name"], repr(run["setting"]), run["pair"]


def wanted(data: Path, groups: list[str], names: list[str]) -> Iterator[tuple[dict, Case, Setting]]:
    """What tells a run from others, with its pair and its setting, of these names or of all."""
    for group in groups:
        family = family_of(group)
        for case in READERS[group](data):
            for name in names or family:
                setting = family[name]
                changes = {k: v for k, v in asdict(setting).items() if v != getattr(Setting(), k)}
                changes = {k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()}
                about = {"group": group, "name": name, "setting": changes, "pair": case.name}
                yield about, case, setting


def run_all(data: Path, groups: list[str], names: list[str], path: Path) -> None:
    done = journal.read(path, key)
    for about, case, setting in wanted(data, groups, names):
        if key(about) in done:
            continue
        run = about | measured(case, setting)
        journal.append(run, path)
        figures = f"Dice {run['dice']:.4f}, objective {run['objective']:.3f}, {run['cpu_s']:.2f} s"
        print(f"{run['group']} {run['pair']} {run['name']}: {figures}", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="register the pairs with every setting")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--group", choices=READERS, nargs="+", default=list(READERS))
    run.add_argument(
        "--setting", choices=WITHIN | OTHERS | ACROSS | FEW_EDGES, nargs="+", default=[]
    )
    table = commands.add_parser("table", help="choose, and write the results")
    table.add_argument("--name", default=NAME, help=f"of the files in bench/results ({NAME})")
    for command in (run, table):
        lines = ROOT / "build" / "variational_search.jsonl"
        command.add_argument("--runs", type=Path, default=lines)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    if options.command == "table":
        return write_results(journal.read_some(options.runs, key).values(), name=options.name)
    if not (options.data / "volumes" / "pairs.csv").exists():
        print(f"skipped: there is no volumes/pairs.csv in {options.data}")
        return
    run_all(options.data, options.group, options.setting, options.runs)


if __name__ == "__main__":
    main()
