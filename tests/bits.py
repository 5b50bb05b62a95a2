"""Prints a digest of every operator's values and gradients: the same for the same bits."""

import hashlib

import torch
from cases import CASES


def main() -> None:
    for case in CASES:
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


if __name__ == "__main__":
    main()
