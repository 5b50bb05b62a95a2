"""Memory of training on pairs of volumes that do not fit into it, read from `data.cache`.

    python bench/streaming.py [--pairs 500] [--size 160] [--steps 20] [--patch 64] [--workers 2]

Writes so many pairs of cubes of noise, trains LU-net on patches of them, and prints the largest
proportional set size (shared pages counted once) of all processes together in MiB, what the pairs
would take if they were held, and the seconds until the first step and of a step after it; then the
same again from the cache that is there. 41 MB of disk a pair of 160^3 are given back at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch

from diffreg.training.log import read_log


def write_pairs(folder: Path, pairs: int, size: int) -> Path:
    """A manifest of pairs of cubes, 8 bits a voxel."""
    random = torch.Generator().manual_seed(0)
    rows = ["moving,fixed"]
    for number in range(2 * pairs):
        coarse = 255 * torch.rand(1, 1, 10, 10, 10, generator=random)
        fine = torch.nn.functional.interpolate(coarse, (size,) * 3, mode="trilinear")
        image = nib.Nifti1Image(fine[0, 0].numpy().astype(np.uint8), np.eye(4))
        nib.save(image, folder / f"{number:04}.nii")
        if number % 2:
            rows.append(f"{number - 1:04}.nii,{number:04}.nii")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder / "pairs.csv"


def proportional(pid: int) -> float:
    """MiB of a process and those that it started; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    return own + sum(proportional(int(child)) for child in children)


def trained(file: Path, out: Path, words: list[str]) -> dict[str, Any]:
    """Memory and times of a run."""
    command = [sys.executable, "-m", "diffreg", "train", str(file), f"training.out={out}", *words]
    begin, first, peak = time.perf_counter(), 0.0, 0.0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, proportional(process.pid))
            if not first and (out / "log.csv").exists():
                first = time.perf_counter() - begin
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    steps = sorted(1 / entry.pairs_per_second for entry in read_log(out / "log.csv"))
    return {
        "MiB": round(peak),
        "seconds before the first step": round(first),
        "seconds a step": round(steps[len(steps) // 2], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, usual in {"pairs": 500, "size": 160, "steps": 20, "patch": 64, "workers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_pairs(folder, options.pairs, options.size)
        file = folder / "train.toml"
        file.write_text(
            f'data.images = "{manifest}"\ndata.cache = "cache"\nmodel.dimensions = 3\n'
            f"augmentation.crop = {[options.patch] * 3}\n"
        )
        training = {"steps": options.steps, "batch_size": 1, "device": "cpu", "threads": 1}
        words = [f"training.{key}={value}" for key, value in training.items()]
        held = round(2 * options.pairs * options.size**3 * 4 / 2**20)
        for run, workers in (("made", 0), ("read", 0), ("read by workers", options.workers)):
            found = trained(file, folder / run, [*words, f"data.workers={workers}"])
            print(json.dumps({"run": run, "held would be MiB": held, **found}), flush=True)


if __name__ == "__main__":
    main()
