"""Variational registration against ANTs SyN and demons on cardiac pairs.

    python bench/variational/cardiac.py run --data FOLDER --method SyNOnly
    python bench/variational/cardiac.py table

`run` appends one line of JSON for every pair and setting to --runs and goes on where it was stopped;
`table` chooses the settings (nested.py) and writes bench/results/variational.{json,md}.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from methods import GRIDS, METHODS
from pairs import CROPS, Pair, read_pairs

from diffreg.metrics import dice, folding, surface_distances
from diffreg.ops import warp

ROOT = Path(__file__).parents[2]


def measured(pair: Pair, method: str, setting: dict) -> dict:
    """One registration: how well the warped label fits, folds, milliseconds."""
    wall, processor = time.perf_counter(), time.process_time()
    u = METHODS[method](pair.moving, pair.fixed, **setting)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    # One way for all methods: the mask warped linearly, cut at a half.
    label = (warp(pair.moving_label, u) > 0.5).float()
    apart = surface_distances(label, pair.fixed_label, (pair.spacing, pair.spacing), [1])[1]
    folds = folding(u)
    return {
        "dice": dice(label, pair.fixed_label, [1])[1],
        **apart,
        "folded_percent": folds["folded_percent"],
        "min_determinant": folds["min_determinant"],
        "ms": 1e3 * wall,
        "ms_processor": 1e3 * processor,
    }


def key(crop: str, method: str, setting: dict, pair: str) -> tuple[str, ...]:
    return crop, method, json.dumps(setting, sort_keys=True), pair


def read_runs(path: Path) -> dict[tuple[str, ...], dict]:
    """What has been run; a line that was cut off by a kill is left out."""
    runs = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        runs[key(run["crop"], run["method"], run["setting"], run["pair"])] = run
    return runs


def run_all(pairs: list[Pair], crop: str, method: str, settings: list[dict], path: Path) -> None:
    done = read_runs(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for setting in settings:
        values = []
        for pair in pairs:
            run = done.get(key(crop, method, setting, pair.name))
            if run is None:
                about = {"crop": crop, "method": method, "setting": setting, "pair": pair.name}
                run = about | measured(pair, method, setting)
                with path.open("a") as file:
                    print(json.dumps(run), file=file)
            values.append(run)
        mean = {name: sum(v[name] for v in values) / len(values) for name in ("dice", "ms")}
        folded = sum(v["folded_percent"] > 0 for v in values)
        print(f"{method} {json.dumps(setting)}: Dice {mean['dice']:.4f}, {folded} folded pairs, "
              f"{mean['ms']:.0f} ms", flush=True)  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "variational_runs.jsonl")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure a method with every setting of its grid")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--method", choices=METHODS, required=True)
    run.add_argument("--crop", choices=CROPS, default="labels")
    commands.add_parser("table", help="choose settings, write the results")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    if options.command == "run":
        if not (options.data / "ed_es_pairs.csv").exists():
            sys.exit(f"skipped: there is no ed_es_pairs.csv in {options.data}")
        pairs = read_pairs(options.data, options.crop)
        settings = GRIDS[options.method]
        run_all(pairs, options.crop, options.method, settings, options.runs)


if __name__ == "__main__":
    main()
