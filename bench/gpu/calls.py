"""Calls from Python, forward and backward: microseconds of the host, beside the engine's own.

The floor is torch.mul, forward and backward, in the same mode of autograd's engine: with backward
on a thread of its own, torch's default, and on the calling one.
"""

import statistics
import time

import torch
from rows import Trial, put
from shapes import SMALL, device, is_dry, shapes
from work import CASES, Draw, both

from diffreg.benchmark.timing import Graph, Run, interleaved
from diffreg.losses.presets import PRESETS
from diffreg.ops import registration_objective_value_and_gradient

ROUNDS, CALLS = (1, 1) if is_dry() else (15, 10)
MODES = {"engine's thread": True, "calling thread": False}


def wait() -> None:
    if not is_dry():
        torch.cuda.synchronize()


def host_microseconds(runs: dict[str, Run]) -> dict[str, float]:
    """By turns; waiting for the device is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            wait()
            begin = time.perf_counter()
            for _ in range(CALLS):
                run()
            samples[name].append((time.perf_counter() - begin) / CALLS)
    return {name: 1e6 * statistics.median(found) for name, found in samples.items()}


def _direct(similarity: object, draw: Draw) -> Run:
    moving, fixed, u = CASES["registration_objective"].inputs(draw)
    scales = {} if similarity != "pls" else {"eps_moving": 0.02, "eps_fixed": 0.02}
    return lambda: registration_objective_value_and_gradient(moving, fixed, u, similarity, **scales)


def calls(draw: Draw) -> dict[str, Run]:
    found = {case.name: both(case, draw) for case in CASES.values()}
    found["value_and_gradient, pls"] = _direct("pls", draw)
    found["value_and_gradient, default"] = _direct(PRESETS["default"].similarity, draw)
    return found


def floor(draw: Draw) -> Run:
    x = draw.displacement().requires_grad_()
    upstream = torch.ones_like(x)
    return lambda: torch.autograd.grad(torch.mul(x, x), x, upstream)


def device_microseconds(run: Run) -> float | None:
    """In a graph; None where it cannot be captured."""
    if is_dry():
        return None
    try:
        graph = Graph(run)
    except RuntimeError:
        return None
    return round(1e6 * interleaved({"it": graph}, "cuda", 0.05)["it"].median, 2)


def main() -> None:
    trial = Trial()
    (shape,) = shapes(SMALL)
    draw = Draw(shape, device=device())
    least = floor(draw)
    for name, run in calls(draw).items():
        with trial(name, shape=list(shape)):
            for mode, threads in MODES.items():
                with torch.autograd.set_multithreading_enabled(threads):
                    times = host_microseconds({"it": run, "floor": least})
                put(
                    name=name,
                    shape=list(shape),
                    mode=mode,
                    host_us=round(times["it"], 1),
                    floor_us=round(times["floor"], 1),
                )
            put(name=name, shape=list(shape), mode="graph", device_us=device_microseconds(run))
    trial.end()


if __name__ == "__main__":
    main()
