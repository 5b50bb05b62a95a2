"""Kernels alone: each operator, and each case forward and backward, beside x + 1 on as many bytes.

python bench/gpu/kernels.py                       all
python bench/gpu/kernels.py --profile CASE OPERATOR SHAPE...    a few calls of one, for a profiler
"""

import argparse
import functools

import torch
from place import here
from rows import Trial, put
from shapes import device, is_dry
from work import CASES, Draw, both, draws, kernels

from diffreg.benchmark.timing import Graph, Run, Time, interleaved, yardstick

SECONDS = 0.12  # a row
PROFILED = 3  # calls


def alone(run: Run) -> Run:
    """Without Python, where there is a GPU."""
    return run if is_dry() else Graph(run)


def timed(run: Run) -> Time:
    return interleaved({"it": alone(run)}, device(), 0.0 if is_dry() else SECONDS)["it"]


@functools.cache
def yardstick_time(moved: int) -> float:
    run = yardstick(moved, device())
    return interleaved({"it": run}, device(), 0.0 if is_dry() else SECONDS)["it"].median


def measured(run: Run, moved: int) -> dict[str, float]:
    time, least = timed(run), yardstick_time(moved)
    return {
        "us": round(1e6 * time.median, 2),
        "spread": round(time.spread, 3),
        "bytes": moved,
        "yardstick_us": round(1e6 * least, 2),
        "share": round(least / time.median, 4),
    }


def fewest(case, draw: Draw) -> int:
    return case.bytes(draw.shape[1], draw.dimensions)[1] * draw.dtype.itemsize * draw.voxels // 4


def measure_all() -> None:
    trial, seen = Trial(), set()
    for case, draw in draws():
        dtype = str(draw.dtype).removeprefix("torch.")
        about = {"shape": list(draw.shape), "dtype": dtype}
        with trial(case.name, **about):
            for kernel in kernels(case, draw):
                if kernel.key not in seen:
                    seen.add(kernel.key)
                    found = measured(kernel.call, kernel.moved)
                    put(name=kernel.operator, case=case.name, **about, **found)
            found = measured(both(case, draw), fewest(case, draw))
            put(name="forward + backward", case=case.name, **about, **found)
    trial.end()


def profile(case: str, operator: str, shape: list[int]) -> None:
    """The last of the case's calls of the operator, some times, between a profiler's marks."""
    found = kernels(CASES[case], Draw(tuple(shape), device=device()))
    kernel = [k for k in found if k.operator == operator][-1]
    kernel.call()
    if not is_dry():
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for _ in range(PROFILED):
        kernel.call()
    if not is_dry():
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--profile", nargs="+", metavar="CASE OPERATOR SHAPE")
    options = parser.parse_args()
    if options.profile:
        case, operator, *shape = options.profile
        profile(case, operator, [int(n) for n in shape])
    else:
        put(name="machine", **here())
        measure_all()


if __name__ == "__main__":
    main()
