"""Times volumes under torch.compile, by hand: it may take minutes to be ready for them.

python -m diffreg.benchmark.compiled [OPERATOR ...]
"""

from __future__ import annotations

import argparse

import torch

from diffreg.benchmark.cases import CASES, Draw
from diffreg.benchmark.kept import keep, kept_row
from diffreg.benchmark.operators import measure
from diffreg.benchmark.run import HEADLINE_3D, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operator", nargs="*", choices=[[], *CASES], help="all where none is named")
    parser.add_argument("--seconds", type=float, default=4.0, help="a figure (4)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit = machine("cpu")["commit"]
    for name in options.operator or CASES:
        for shape in HEADLINE_3D:
            print(f"{name}: {'x'.join(map(str, shape))}", flush=True)
            row = measure(CASES[name], Draw(shape), True, True, options.seconds, kept=True)
            entry = kept_row(row, commit)
            keep(entry)
            print(f"  {entry['nanoseconds_a_voxel']}, {entry['compile_seconds']} s to compile")


if __name__ == "__main__":
    main()
