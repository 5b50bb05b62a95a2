"""Peak memory of `diffreg register` on two volumes, from file to file.

    python bench/memory.py [--size 160 192 224] [--iterations 60]

Prints the largest resident size of the whole process, and what of it importing torch takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

TORCH = "import torch"
# At its end a process writes down its peak; what wait() says of a child is its parent's as well.
TELLING = """
import atexit

def tell():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    with open({told!r}, "w") as file:
        file.write(lines["VmHWM"].split()[0])

atexit.register(tell)
"""
REGISTER = """
from diffreg.cli.main import main
raise SystemExit(main({words!r}))
"""


def peak(code: str) -> float:
    """Megabytes (2^20 bytes) that a fresh Python holds at most while it runs some code."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "peak"
        subprocess.run([sys.executable, "-c", TELLING.format(told=str(told)) + code], check=True)
        return int(told.read_text()) / 1024


def heads(folder: Path, size: tuple[int, ...]) -> list[str]:
    """Two noise textures in ellipsoids, the second one bent and turned a little."""
    draw = np.random.default_rng(0)
    noise = gaussian_filter(draw.normal(size=size).astype(np.float32), 4)
    places = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in size), indexing="ij")
    inside = sum(p * p for p in places) < 0.8
    image = np.where(inside, 100 + 40 * noise / noise.std(), 0).astype(np.float32)
    turned = np.diag([1.0, 1.0, 1.0, 1.0])
    turned[:2, :2] = [[0.995, -0.1], [0.1, 0.995]]
    paths = []
    for name, array, affine in (
        ("moving", np.roll(image, 2, 0), turned),
        ("fixed", image, np.eye(4)),
    ):
        file = nib.Nifti1Image(np.clip(array, 0, 255).astype(np.uint8), affine)
        nib.save(file, folder / f"{name}.nii.gz")
        paths.append(str(folder / f"{name}.nii.gz"))
    return paths


def measured(size: tuple[int, ...], iterations: int, *more: str) -> dict[str, float]:
    """Peaks in MiB: of the registration, and of importing torch."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["register", *heads(Path(folder), size), "-o", f"{folder}/out", *more]
        words += ["--iterations", str(iterations)]
        registration = peak(REGISTER.format(words=words))
    return {"register": registration, "torch": peak(TORCH)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(160, 192, 224))
    parser.add_argument("--iterations", type=int, default=60, help="on each level (60)")
    parser.add_argument("--similarity", default="auto")
    options = parser.parse_args()
    more = "--similarity", options.similarity
    print(json.dumps(measured(tuple(options.size), options.iterations, *more)))


if __name__ == "__main__":
    main()
