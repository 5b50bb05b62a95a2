"""Variational registration against ANTs SyN and demons on cardiac pairs.

    python bench/compare/cardiac.py run --data FOLDER --method "SyNOnly CC"
    python bench/compare/cardiac.py run --data FOLDER --method "SyNOnly CC" --crop variance
    python bench/compare/cardiac.py table --data FOLDER

`run` appends one line of JSON for every pair and setting to --runs and goes on where it was
stopped; with the crop that knows no label it runs the settings chosen on the other one. `table`
chooses the settings (nested.py), times them by turns and writes
bench/results/variational.{json,md}.
"""

import argparse
import json
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import journal
import torch
from methods import GRIDS, METHODS
from nested import by_setting, chosen, nested, table, usual_setting, versus
from pairs import CROPS, Pair, read_pairs

from diffreg.benchmark.run import machine
from diffreg.metrics import dice, folding, surface_distances
from diffreg.ops import warp

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


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


def key_of(run: dict) -> tuple[str, ...]:
    return key(run["crop"], run["method"], run["setting"], run["pair"])


def read_runs(path: Path) -> dict[tuple[str, ...], dict]:
    return journal.read(path, key_of)


def run_all(pairs: list[Pair], crop: str, method: str, settings: list[dict], path: Path) -> None:
    done = read_runs(path)
    for setting in settings:
        values = []
        for pair in pairs:
            run = done.get(key(crop, method, setting, pair.name))
            if run is None:
                about = {"crop": crop, "method": method, "setting": setting, "pair": pair.name}
                run = about | measured(pair, method, setting)
                journal.append(run, path)
            values.append(run)
        mean = {name: sum(v[name] for v in values) / len(values) for name in ("dice", "ms")}
        folded = sum(v["folded_percent"] > 0 for v in values)
        print(f"{method} {json.dumps(setting)}: Dice {mean['dice']:.4f}, {folded} folded pairs, "
              f"{mean['ms']:.0f} ms", flush=True)  # fmt: skip


def choices(runs: dict, method: str) -> dict[str, str]:
    """patient -> setting, chosen on the crop round the cavity."""
    return chosen(by_setting(runs, "labels", method))


def milliseconds(pairs: list[Pair], settings: dict[str, dict]) -> dict[str, float]:
    """Median wall time of a pair, methods by turns, every fourth pair."""
    times: dict[str, list[float]] = {method: [] for method in settings}
    for pair in pairs[::4]:
        for method, setting in settings.items():
            times[method].append(measured(pair, method, setting)["ms"])
    return {method: statistics.median(each) for method, each in times.items()}


def write_results(runs: dict, pairs: list[Pair]) -> None:
    results: dict[str, list[dict]] = {}
    for crop in CROPS:
        rows = [
            nested(runs, crop, method, choices(runs, method))
            for method in METHODS
            if by_setting(runs, crop, method)
        ]
        ours = next(row for row in rows if row["method"] == "diffreg")
        for row in rows:
            if row is not ours:
                row["ours_minus_this"] = versus(ours, row)
        results[crop] = rows
    settings = {row["method"]: json.loads(usual_setting(row)) for row in results["labels"]}
    about = {**machine("cpu"), **_machine(), "load_before": machine("cpu")["load"]}
    times = milliseconds(pairs, settings)
    for row in results["labels"]:
        row["ms"] = times[row["method"]]
    about["load_after"] = machine("cpu")["load"]
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": about, "results": results}, indent=1)
    (RESULTS / "variational.json").write_text(text + "\n")
    (RESULTS / "variational.md").write_text(_page(results, about, settings))


def _machine() -> dict:
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True).stdout
    names = [line.partition(":")[2].strip() for line in lscpu.splitlines() if "Model name" in line]
    packages = ("antspyx", "SimpleITK", "numpy", "scipy")
    return {
        "processor": names[0] if names else "unknown",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        **{p: version(p) for p in packages},
    }


def _page(results: dict, about: dict, settings: dict) -> str:
    lines = [
        "# Slices: variational registration beside its peers",
        "",
        "Means over 5 patients (38 pairs), 95 % bootstrap intervals over patients; settings chosen",
        "on the other four patients. Written by bench/compare/cardiac.py.",
        f"{about['processor']}, {about['threads']} thread, load {about['load_before']:.1f} to",
        f"{about['load_after']:.1f}, torch {about['torch']}, antspyx {about['antspyx']},",
        f"SimpleITK {about['SimpleITK']}, commit {about['commit'][:10]}.",
    ]
    for crop, rows in results.items():
        side = CROPS[crop]
        title = "round the cavity" if crop == "labels" else "round what moves, no label looked at"
        lines += ["", f"**{side} x {side} voxels {title}**", "", table(rows)]
    lines += ["", "The setting that most patients got, of how many:", ""]
    for row in results["labels"]:
        kept = json.dumps(settings[row["method"]])
        lines.append(f"- {row['method']}, {row['settings_tried']}: `{kept}`")
    return "\n".join(lines) + "\n"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "variational_runs.jsonl")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure a method with every setting of its grid")
    run.add_argument("--method", choices=METHODS, required=True)
    run.add_argument("--crop", choices=CROPS, default="labels")
    results = commands.add_parser("table", help="choose settings, write the results")
    for command in (run, results):
        command.add_argument("--data", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    if not (options.data / "ed_es_pairs.csv").exists():
        print(f"skipped: there is no ed_es_pairs.csv in {options.data}")
        return
    if options.command == "table":
        return write_results(journal.read_some(options.runs, key_of), read_pairs(options.data))
    settings = GRIDS[options.method]
    if options.crop != "labels":
        kept = choices(read_runs(options.runs), options.method).values()
        settings = [json.loads(setting) for setting in dict.fromkeys(kept)]
    pairs = read_pairs(options.data, options.crop)
    run_all(pairs, options.crop, options.method, settings, options.runs)


if __name__ == "__main__":
    main()
