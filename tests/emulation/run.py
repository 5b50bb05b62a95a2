"""Runs emulated kernels in a process of its own: under a sanitizer, or against other orders.

    python tests/emulation/run.py --flavour address|race|plain [--library FILE] [--case NAME ...]

Exit status 0: nothing was reported and every result agrees with the CPU operator.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from emulation import build, case_table, comparison
from emulation.emulated import ENOUGH_TILES, GRID_LIMIT, Emulation


# Small, since a sanitizer is slow: a tile and a bit more along both axes, two of everything.
def small(case: case_table.Case) -> case_table.Shape:
    return case_table.Shape(2, 2, case.size((35, max(66, case.tile[1] + 4)), (3, 9, 36)))


# Whose value then has five strips, of 8 planes, and whose gradient four, of 32: each has a
# workspace of its own size.
CROSSED = ("energy-hyperelastic-3d", "objective-ssd-3d")


def check_agreement(emulation: Emulation, case: case_table.Case, dtype: torch.dtype) -> None:
    """Against the CPU, in order; and with fewer blocks than tiles, of long strips."""
    for limit, enough in ((GRID_LIMIT, ENOUGH_TILES), (3, 0)):
        emulation.set(grid_limit=limit, enough_tiles=enough)
        for shape in (small(case), case_table.Shape(1, 1, case.size((1, 5), (2, 1, 5)))):
            comparison.compare(emulation, case, shape, dtype)
    if case.name in CROSSED:
        emulation.set(enough_tiles=4)
        comparison.compare(emulation, case, case_table.Shape(1, 1, (33, 8, 28)), dtype)


def check_orders(emulation: Emulation, case: case_table.Case, dtype: torch.dtype) -> None:
    """Threads and blocks in other orders, and fewer blocks: the same bits."""
    emulation.set()
    expected = comparison.results(emulation, case, small(case), dtype)
    for seed, limit in ((1, GRID_LIMIT), (2, 3)):
        emulation.set(seed=seed, grid_limit=limit)
        found = comparison.results(emulation, case, small(case), dtype)
        for own, other in zip(found, expected, strict=True):
            bits = own.view(torch.uint8), other.view(torch.uint8)
            assert torch.equal(*bits), f"{case.name}: the order of threads changes the result"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flavour", choices=sorted(build.SANITIZE), default="plain")
    parser.add_argument("--library", type=Path)
    parser.add_argument("--case", nargs="*", default=list(case_table.CASES))
    options = parser.parse_args()
    library = options.library or build.build(options.flavour)
    if options.flavour != "plain" and not os.environ.get("LD_PRELOAD"):
        environment = build.environment(options.flavour)
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    torch.set_num_threads(1)
    emulation = Emulation(library)
    for name in options.case:
        case = case_table.CASES[name]
        check_agreement(emulation, case, torch.float64)
        check_orders(emulation, case, torch.float32)
    print(f"{options.flavour}: {len(options.case)} cases, nothing reported")


if __name__ == "__main__":
    main()
