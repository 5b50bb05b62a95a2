"""An operator alone, forward and backward, over and over: for a profiler, or another thread.

    python bench/steady.py registration_objective --shape 1 1 512 512 --threads 1 2
    perf record python bench/steady.py warp && perf report --sort dso,symbol

`diffreg bench` takes turns with eager PyTorch, which leaves cold caches and memory given back to
the system.
"""

import argparse
import statistics
import time

import torch

from diffreg.benchmark.cases import CASES, Draw, as_tensors

ROUNDS = 4


def nanoseconds(name: str, shape: list[int], threads: int, seconds: float) -> float:
    """Median of a voxel."""
    torch.set_num_threads(threads)
    case = CASES[name]
    inputs = case.inputs(Draw(tuple(shape)))
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        values = as_tensors(case.ours(*inputs))
        torch.autograd.grad([value.sum() for value in values], wanted)
        times.append(time.perf_counter() - begin)
    return 1e9 * statistics.median(times[len(times) // 10 :]) / Draw(tuple(shape)).voxels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("operator", choices=CASES)
    parser.add_argument("--shape", type=int, nargs="+", default=[16, 1, 256, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="taken by turns")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn; four a number")
    options = parser.parse_args()
    times: dict[int, list[float]] = {number: [] for number in options.threads}
    for _ in range(ROUNDS):
        for number in options.threads:
            found = nanoseconds(options.operator, options.shape, number, options.seconds)
            times[number].append(found)
    for number, each in times.items():
        print(f"{statistics.median(each):.2f} ns a voxel, threads: {number}")


if __name__ == "__main__":
    main()
