"""One operator's rows, printed: for work on its kernels.

python -m diffreg.benchmark.one OPERATOR
"""

from __future__ import annotations

import argparse

import torch

from diffreg.benchmark.cases import CASES, Draw
from diffreg.benchmark.operators import measure


def main() -> None:
    """Prints the headline shapes of one operator, forward, and forward and backward."""
    parser = argparse.ArgumentParser(description="Times one operator against eager PyTorch.")
    parser.add_argument("operator", choices=sorted(CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--volumes", action="store_true", help="volumes, with memory kept")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--seconds", type=float, default=2.0, help="a row (2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from diffreg.benchmark.run import HEADLINE, HEADLINE_3D, HEADLINE_GPU

    images = HEADLINE_GPU if options.device == "cuda" else HEADLINE
    for shape in HEADLINE_3D if options.volumes else images:
        for backward in (False, True):
            row = measure(
                CASES[options.operator],
                Draw(shape, device=options.device),
                backward,
                options.compile,
                options.seconds,
                kept=options.volumes,
            )
            times = ", ".join(f"{k} {v:.3f}" for k, v in row["nanoseconds_a_voxel"].items())
            name = f"{options.operator} {'x'.join(map(str, shape))}"
            print(f"{name} {row['direction']}: {times} ns a voxel")


if __name__ == "__main__":
    main()
