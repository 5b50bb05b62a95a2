"""Prints a digest of every operator's values and gradients: the same for the same bits.

PYTHONPATH=tests python tests/bits.py [warp affine ...]     of the cases whose names so begin
"""

import hashlib
import sys

import torch
from cases import CASES

from diffreg.ops import warp


def main(*names: str) -> None:
    for case in CASES:
        if not case.name.startswith(names or ("",)):
            continue
        digest = hashlib.sha256()
        for dtype in (torch.float32, torch.float64):
            for size in ((1, 1), (19, 37), (40, 300), (1, 6, 5), (19, 6, 37)):
                if not case.has_values(size):
                    continue
                inputs = case.inputs(2, 2, size, dtype)
                for tensor, wanted in zip(inputs, case.differentiable, strict=True):
                    tensor.requires_grad_(wanted)
                values = case(*inputs)
                sum(v.square().sum() for v in values).backward()
                for tensor in (*values, *(i.grad for i in inputs if i.grad is not None)):
                    digest.update(tensor.detach().contiguous().numpy().tobytes())
        print(case.name, digest.hexdigest())
    print("zeros", hashlib.sha256(near_and_far().numpy().tobytes()).hexdigest())


def near_and_far() -> torch.Tensor:
    """Zeros sampled in and around an image: all that can differ is the sign of a 0."""
    displacement = torch.randint(
        -60, 60, (1, 3, 3, 5, 7), generator=torch.Generator().manual_seed(0)
    )
    return warp(torch.zeros(1, 1, 3, 5, 7), displacement / 32, "cubic", "zeros")


if __name__ == "__main__":
    main(*sys.argv[1:])
