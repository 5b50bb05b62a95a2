"""One operator's rows, printed: for work on its kernels. Called by bench/ops/bench_<op>.py."""

from __future__ import annotations

import argparse

import torch

from diffreg.benchmark.cases import CASES, Draw
from diffreg.benchmark.operators import measure


def main(operator: str) -> None:
    """Prints the headline shapes of one operator, forward, and forward and backward.

    Args:
        operator: name of one of CASES.
    """
    parser = argparse.ArgumentParser(description=f"Times {operator} against eager PyTorch.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--seconds", type=float, default=2.0, help="a row (2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from diffreg.benchmark.run import HEADLINE, HEADLINE_GPU

    for shape in HEADLINE_GPU if options.device == "cuda" else HEADLINE:
        for backward in (False, True):
            draw = Draw(shape, device=options.device)
            row = measure(CASES[operator], draw, backward, options.compile, options.seconds)
            times = ", ".join(f"{k} {v:.3f}" for k, v in row["nanoseconds_a_pixel"].items())
            print(f"{operator} {'x'.join(map(str, shape))} {row['direction']}: {times} ns a pixel")
