"""What half precision costs in voxels: python bench/precision.py writes docs/precision.md.

Rounding only, no timing: the figures are the same on every machine.
"""

import argparse
from pathlib import Path

import torch

from diffreg.benchmark.cases import smooth
from diffreg.ops import jacobian_determinant

SIZE = 512
AMPLITUDES = (1, 3, 10, 30, 100)
PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
HEAD = f"""# What half precision costs

Every operator takes float16 and bfloat16, computes in float32, and returns images in the dtype of
the moving image, determinants and scalars in float32, gradients in the dtype of the input. On the
CPU inputs are converted first; on a GPU the kernels read and write half types that all images and
fields of an operator share, with the same results up to the order of sums: masks and edge scales
are float32 on both. So only the rounding of what is stored counts. A smooth
random displacement on {SIZE} x {SIZE} voxels, rounded to the half type and compared with itself in
float32 (`python bench/precision.py` writes this page). Columns: largest displacement in voxels,
largest and mean error in voxels, largest error of a corner determinant.

| displacement | dtype | largest error | mean error | error of a determinant |
|---|---|---|---|---|
"""
TAIL = f"""
For comparison, the same positions as a normalised sampling grid in [-1, 1], as `grid_sample` takes
it, rounded to the half type: errors of up to {{float16:.3f}} voxels in float16 and {{bfloat16:.3f}}
in bfloat16 with {SIZE} voxels an axis, however small the displacement, since positions are rounded.

In words: up to ten voxels a float16 displacement is off by less than 0.005 voxels and a bfloat16
one by less than 0.04, which is enough to warp with. Take determinants, and certify folding, on
float32.
"""


def row(amplitude: int, dtype: torch.dtype) -> str:
    u = smooth((1, 2, SIZE, SIZE), amplitude, seed=3)
    rounded = u.to(dtype).float()
    error = (rounded - u).abs()
    determinant = (jacobian_determinant(rounded) - jacobian_determinant(u)).abs().max()
    name = str(dtype).removeprefix("torch.")
    return f"| {amplitude} | {name} | {error.max():.5f} | {error.mean():.5f} | {determinant:.4f} |"


def grid_error(dtype: torch.dtype) -> float:
    """Largest error in voxels of the normalised grid's rounding."""
    position = torch.arange(SIZE, dtype=torch.float32) + smooth((1, 1, SIZE, SIZE), 3, seed=3)[0, 0]
    grid = position * 2 / (SIZE - 1) - 1
    return float(((grid.to(dtype).float() - grid) * (SIZE - 1) / 2).abs().max())


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    halves = torch.float16, torch.bfloat16
    rows = [row(amplitude, dtype) for amplitude in AMPLITUDES for dtype in halves]
    tail = TAIL.format(float16=grid_error(torch.float16), bfloat16=grid_error(torch.bfloat16))
    PAGE.write_text(HEAD + "\n".join(rows) + "\n" + tail)
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
