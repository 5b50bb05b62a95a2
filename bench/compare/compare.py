"""diffreg beside what a user could run instead, on labelled volumes and slices: docs/compare.md.

    python bench/compare/compare.py --data DIR [--checkpoint run/best.pt] [--voxelmorph run/best.pt]
                                    [--only TOOL ...] [--sets SET ...]
    python bench/compare/compare.py

DIR is the folder of docs/data.md. The other tools are installed into --peers, each pair is
registered by each tool in a fresh process on one thread (sets.PLAN), measured and told in a line of
JSON in --runs, and the page is written after each set and tool; what it has of others stays. What
stands in --runs is not run again, so that this may be stopped at any moment. Without --data the
page is written from what there is.
"""

import argparse
import tempfile
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import environment
import journal
import torch
from compare_page import write_page
from contrasts import simulated
from labelled import Pair, measured, read_pairs
from registering import (
    BEGUN,
    NETWORKS,
    OURS,
    SETTINGS,
    VOXELMORPH,
    Network,
    read_network,
    registered,
)
from sets import GROUPS, PLAN, Task
from slice_pairs import write_slices
from tools import METHODS

from diffreg.benchmark.run import machine
from diffreg.training.checkpoint import load_network

ROOT = Path(__file__).parents[2]
TWO_CONTRASTS = "brain2mm_simulated"
Key = tuple[str, ...]  # group, method, setting, pair, processor


class Runner(NamedTuple):
    """Where runs are kept, and what they are run with.

    Args:
        runs: the journal.
        peers: the folder of the other tools' environment.
        left_out: package -> why it is not there.
        networks: what those of NETWORKS register by that are not left out.
    """

    runs: Path
    peers: Path
    left_out: dict[str, str]
    networks: Mapping[str, Network] = {}

    def pairs(self, task: Task, pairs: list[Pair]) -> list[Pair]:
        """Those of the task; of a network's those of people whom it has not seen."""
        if task.method not in NETWORKS:
            return pairs[: task.pairs]
        if task.method not in self.networks:
            return []
        return [pair for pair in pairs if not self.networks[task.method].knows(pair)]

    def can(self, method: str) -> bool:
        tool = BEGUN.get(method, method)
        return tool not in METHODS or METHODS[tool].package not in self.left_out

    def run(self, pair: Pair, method: str) -> bool:
        """Register, measure and keep, unless that has been done; whether there was something to do.

        What ends with an error is kept as that. What another version of diffreg did is done anew.
        """
        about = machine("cpu")
        run = {"group": pair.group, "pair": pair.name, "person": pair.person, "method": method}
        run |= {"setting": SETTINGS[method], "processor": about["processor"]}
        run |= {"commit": _commit(), "load": about["load"]}
        network = self.networks.get(method)
        if network is not None:
            run["setting"] += f" ({network.about})"
            run["label"] = f"{method} (trained here on {network.people} people)"
        if method in OURS or method in NETWORKS or method in BEGUN:
            run["version"] = f"diffreg {version('diffreg')}"
        done = read_runs(self.runs).get(key(run))
        by = (done or {}).get("version", "").partition(":")[0]
        if done and run.get("version", by) == by:
            return False
        try:
            u, cost = registered(pair, method, environment.python_of(self.peers), network)
            run |= cost | measured(pair, u)
        except RuntimeError as error:
            run["error"] = str(error)
        journal.append(run, self.runs)
        values = {name: run[name] for name in ("dice", "end_point_error", "cpu_s") if name in run}
        words = run.get("error") or ", ".join(f"{name} {values[name]:.4g}" for name in values)
        print(f"{pair.group} {pair.name} {method}: {words}", flush=True)
        return True


@cache
def _commit() -> str:
    """As it was before a page was written, which changes the tree."""
    return machine("cpu")["commit"]


def key(run: dict) -> Key:
    return tuple(run[name] for name in ("group", "method", "setting", "pair", "processor"))


def read_runs(path: Path) -> dict[Key, dict]:
    """What has been run, the last line of each."""
    return journal.read(path, key)


def pairs_of(data: Path, folder: Path) -> dict[str, list[Pair]]:
    """group -> its pairs, none of what `data` does not hold; the slices are written to `folder`."""
    found = {group: read_pairs(data / "volumes", group) for group in GROUPS}
    found |= write_slices(data, folder)
    heads = folder / "simulated"
    heads.mkdir()
    found[TWO_CONTRASTS] = [simulated(pair, heads, TWO_CONTRASTS) for pair in found["brain2mm"]]
    for group in (group for group in GROUPS if not found[group]):
        print(f"{group}: no pair of it in {data}, left out")
    return found


def run_plan(
    pairs: Mapping[str, list[Pair]],
    runner: Runner,
    methods: Collection[str] = (),
    groups: Collection[str] = (),
) -> None:
    """PLAN in its order, and the page after each of its tasks that changed something.

    Args:
        pairs: group -> its pairs.
        runner: what runs them.
        methods: those that are run; none: all.
        groups: those that are run on; none: all.
    """
    for task in PLAN:
        asked = not methods or task.method in methods
        if asked and task.group in (groups or GROUPS) and runner.can(task.method):
            new = [runner.run(pair, task.method) for pair in runner.pairs(task, pairs[task.group])]
            if any(new):
                write_page(read_runs(runner.runs).values(), runner.left_out)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder of docs/data.md")
    parser.add_argument("--checkpoint", type=Path, help="a network of volumes, for the heads")
    parser.add_argument("--voxelmorph", type=Path, help="VoxelMorph's, of voxelmorph_heads.toml")
    methods = sorted({task.method for task in PLAN})
    parser.add_argument("--only", choices=methods, nargs="+", default=[], metavar="TOOL")
    parser.add_argument("--sets", choices=GROUPS, nargs="+", default=[], metavar="SET")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "compare.jsonl")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    if options.data is None:
        return write_page(journal.read_some(options.runs, key).values(), {})
    table = options.data / "volumes" / "pairs.csv"
    if not table.exists():
        return print(f"compare: skipped, there is no {table}; docs/data.md says what it is")
    _commit()
    networks = {
        method: read_network(path)
        for method in NETWORKS
        if (path := options.voxelmorph if method == VOXELMORPH else options.checkpoint)
    }
    for network in networks.values():
        try:
            load_network(network.path, trust=True)  # here, not after an hour
        except (ImportError, ValueError) as error:
            raise SystemExit(f"compare: {error}") from None
    left_out = environment.prepare(options.peers)
    runner = Runner(options.runs, options.peers, left_out, networks)
    with tempfile.TemporaryDirectory() as folder:
        run_plan(pairs_of(options.data, Path(folder)), runner, options.only, options.sets)
    write_page(read_runs(options.runs).values(), left_out)


if __name__ == "__main__":
    main()
