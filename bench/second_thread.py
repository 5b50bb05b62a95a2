"""What a second thread gives the objective at 1 x 1 x 512 x 512 when nothing else runs in between.

    python bench/second_thread.py

`diffreg bench` takes turns with eager PyTorch, which leaves cold caches and memory given back to
the system; this times the objective alone, one and two threads by turns.
"""

import statistics
import time

import torch

from diffreg.benchmark.cases import CASES, Draw

SECONDS, ROUNDS = 2.0, 4


def nanoseconds(threads: int) -> float:
    """Median of a pixel, forward and backward."""
    torch.set_num_threads(threads)
    case, draw = CASES["registration_objective"], Draw((1, 1, 512, 512))
    inputs = case.inputs(draw)
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        torch.autograd.grad(case.ours(*inputs).sum(), inputs[2])
        times.append(time.perf_counter() - begin)
    return 1e9 * statistics.median(times[len(times) // 10 :]) / 512**2


def main() -> None:
    rounds = [[nanoseconds(number) for number in (1, 2)] for _ in range(ROUNDS)]
    one, two = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"{one:.2f} ns a pixel on one thread, {two:.2f} on two: {one / two:.2f}x")


if __name__ == "__main__":
    main()
