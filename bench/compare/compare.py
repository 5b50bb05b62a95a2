"""Variational registration of volumes against what a user could run instead.

    python bench/compare/compare.py run --data FOLDER --group brain2mm --method greedy \
        --python PEERS/bin/python
    python bench/compare/compare.py measure --data FOLDER
    python bench/compare/compare.py table

`run` registers the pairs of a group, a fresh process each (tools.py), appends one line of
JSON a pair to --runs, keeps the displacements in --fields, and goes on where it was stopped.
`measure` certifies the kept displacements. `table` writes
bench/results/variational_volumes.{json,md,png}. FOLDER has pairs.csv (labelled.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import journal
import nibabel as nib
import numpy as np
import torch
from labelled import Pair, certified, measured, read_pairs
from summary import write_results
from tools import METHODS

from diffreg.benchmark.run import machine
from diffreg.data.transforms import read_field

ROOT = Path(__file__).parents[2]
FIELDS = Path(tempfile.gettempdir()) / "peers_fields"
PEER = Path(__file__).with_name("tools.py")
GROUPS = ("brain2mm", "brain1mm", "cardiac3d")
# Words of `diffreg register`: the pairs are on one grid already, as for all others.
ALWAYS = ("--affine", "none", "--device", "cpu", "--no-report", "--no-composites")
BUDGETS: dict[str, tuple[str, ...]] = {
    "diffreg fast": ("--iterations", "30,30,10"),
    "diffreg": (),
    "diffreg long": ("--iterations", "100,100,60"),
}
SETTINGS = {
    "identity": "",
    **{name: " ".join((*ALWAYS, *words)) for name, words in BUDGETS.items()},
    **{name: method.setting for name, method in METHODS.items()},
}
NAMES = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
ONE_THREAD = dict.fromkeys((*NAMES, "OPENBLAS_NUM_THREADS"), "1")
Key = tuple[str, str, str, str]  # group, method, setting, pair


def registered(pair: Pair, method: str, python: str) -> tuple[np.ndarray, dict]:
    """The displacement (3, *S), voxels, float32, and what it cost.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    if method == "identity":
        return np.zeros((3, *nib.load(pair.fixed).shape), np.float32), {}
    with tempfile.TemporaryDirectory() as folder:
        if method in BUDGETS:
            return ours(pair, BUDGETS[method], Path(folder))
        out, cost = Path(folder) / "out", Path(folder) / "cost"
        cost = fresh([python, PEER, method, pair.fixed, pair.moving, out], cost)
        told = json.loads(out.with_suffix(".json").read_text())
        path = out.with_suffix(".nii")
        u = read_field(path if path.exists() else f"{out}.npz:u")[0].numpy()
    return u.astype(np.float32), cost | told


def ours(pair: Pair, words: tuple[str, ...], folder: Path) -> tuple[np.ndarray, dict]:
    """As `registered`, by the command line; the search is the process beyond importing torch."""
    images = ("register", pair.moving, pair.fixed, "-o", folder / "out")
    cost = fresh([sys.executable, "-m", "diffreg", *images, *ALWAYS, *words], folder / "cost")
    torch_alone = fresh([sys.executable, "-c", "import torch"], folder / "cost")["cpu_s"]
    cost |= {"search_s": cost["cpu_s"] - torch_alone, "version": f"diffreg {version('diffreg')}"}
    u = read_field(folder / "out" / "displacement.nii.gz")[0].numpy()
    return u.astype(np.float32), cost


def fresh(command: list, told: Path) -> dict:
    """CPU seconds (user and system) and the largest resident size of a process on one thread.

    GNU time starts it: what a process says of its child includes its own size.
    """
    asked = ["/usr/bin/time", "-o", told, "-f", "%U %S %M", *command]
    done = subprocess.run(
        [str(part) for part in asked], env=os.environ | ONE_THREAD, capture_output=True, text=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"ended with {done.returncode}")
    user, system, kilobytes = told.read_text().splitlines()[-1].split()
    return {"cpu_s": float(user) + float(system), "peak_mb": int(kilobytes) / 1024}


def key(run: dict) -> Key:
    return run["group"], run["method"], run["setting"], run["pair"]


def read_runs(path: Path) -> dict[Key, dict]:
    """What has been run, the last line of each."""
    return journal.read(path, key)


def keep(run: dict, path: Path) -> None:
    journal.append(run, path)
    words = run.get("error") or f"Dice {run['dice']:.4f}, {run.get('cpu_s', 0):.1f} CPU s"
    print(f"{run['group']} {run['pair']} {run['method']}: {words}", flush=True)


def field_of(run: dict, fields: Path) -> Path:
    return fields / run["group"] / run["method"] / f"{run['pair']}.npy"


def run_pair(pair: Pair, method: str, options: argparse.Namespace) -> None:
    run = {"group": pair.group, "pair": pair.name, "person": pair.person, "method": method}
    run |= {"setting": SETTINGS[method], "load": machine("cpu")["load"]}
    if key(run) in read_runs(options.runs):
        return
    try:
        u, cost = registered(pair, method, options.python)
    except RuntimeError as error:
        return keep(run | {"error": str(error)}, options.runs)
    target = field_of(run, options.fields)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.save(target, u)
    keep(run | cost | measured(pair, u), options.runs)


def measure(options: argparse.Namespace) -> None:
    """Certify what is not certified yet; with --again, measure everything anew."""
    pairs = {(g, p.name): p for g in GROUPS for p in read_pairs(options.data, g)}
    for run in read_runs(options.runs).values():
        path = field_of(run, options.fields)
        if "error" in run or not path.exists() or ("folded_cells" in run and not options.again):
            continue
        u = np.load(path)
        more = measured(pairs[run["group"], run["pair"]], u) if options.again else {}
        keep(run | more | certified(u), options.runs)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="register the pairs of a group")
    run.add_argument("--method", choices=SETTINGS, nargs="+", required=True)
    run.add_argument("--group", choices=GROUPS, default="brain2mm")
    run.add_argument("--pairs", type=int, nargs="+", help="which of the group (0 1 ...); all")
    run.add_argument("--python", default=sys.executable, help="that has the peers")
    again = commands.add_parser("measure", help="certify the kept displacements")
    again.add_argument("--again", action="store_true", help="the other measures, too")
    results = commands.add_parser("table", help="write the results")
    for command in (run, again):
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--fields", type=Path, default=FIELDS)
    for command in (run, again, results):
        runs = ROOT / "build" / "variational_volumes.jsonl"
        command.add_argument("--runs", type=Path, default=runs)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.command == "table":
        return write_results(read_runs(options.runs).values(), SETTINGS, tuple(BUDGETS))
    torch.set_num_threads(1)
    if not (options.data / "pairs.csv").exists():
        print(f"skipped: there is no pairs.csv in {options.data}")
        return
    if options.command == "measure":
        return measure(options)
    pairs = read_pairs(options.data, options.group)
    for method in options.method:
        for index in options.pairs or range(len(pairs)):
            run_pair(pairs[index], method, options)


if __name__ == "__main__":
    main()
