"""One row of the operators' table: ours against every candidate on one draw of inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from diffreg.benchmark.cases import Case, Draw, Function, Tensors
from diffreg.benchmark.counting import counted
from diffreg.benchmark.peers import FORWARD_ONLY
from diffreg.benchmark.timing import Run, in_a_graph, interleaved

Row = dict[str, Any]
# Of the largest value. Gradients: at a kink (a point on a voxel centre, level sets that cross)
# rounding decides which side a derivative is of, so that few voxels may be farther apart.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
KINKS = 1e-2


def measure(
    case: Case, draw: Draw, backward: bool, compiled: bool = False, seconds: float = 2.0
) -> Row:
    """Times, rates and counts of one operator on one draw.

    Args:
        case, draw: what is run, and on what.
        backward: forward and backward, to every input that requires a gradient; else forward alone.
        compiled: also torch.compile of the first eager form.
        seconds: about how long the timing may take.

    Returns:
        A row of the results, see schema.json. A candidate whose value or gradient is another one
        than ours stands under "disagrees", without a time.
    """
    inputs = case.inputs(draw)
    upstream = _upstream(case.ours(*inputs))
    candidates: dict[str, Function] = {"diffreg": case.ours}
    for number, function in enumerate(case.eager):
        candidates[f"eager {number + 1}"] = function
    for name, function in case.peers(inputs[0]).items():
        if not (backward and name in FORWARD_ONLY):
            candidates[name] = function
    runs = {
        name: _run(function, inputs, upstream if backward else None)
        for name, function in candidates.items()
    }
    compile_seconds = None
    if compiled:
        begin = time.perf_counter()
        runs["torch.compile"] = _run(
            torch.compile(case.eager[0], dynamic=False), inputs, upstream if backward else None
        )
        runs["torch.compile"]()
        compile_seconds = round(time.perf_counter() - begin, 1)
    # At the zero field every point is on a voxel centre, a kink: values alone are compared there.
    compared = runs
    if draw.field == "zero" and case.has_field:
        compared = {n: _run(f, inputs, None) for n, f in candidates.items()}
    disagrees = _disagreeing(compared, backward)
    counts = {name: counted(runs[name]) for name in runs if name.startswith(("diffreg", "eager"))}
    timed: dict[str, Run] = {name: run for name, run in runs.items() if name not in disagrees}
    if draw.device == "cuda":
        timed["diffreg, in a graph"] = in_a_graph(runs["diffreg"])
    page = torch.rand(inputs[0].numel(), device=draw.device)
    into = torch.empty_like(page)
    timed["copy"] = lambda: into.copy_(page)
    times = interleaved(timed, draw.device, seconds)
    return _row(case, draw, backward, times, counts, disagrees, compile_seconds, page.nbytes)


def _upstream(value: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(value.shape, generator=generator).to(value)


def _run(function: Function, inputs: Tensors, upstream: torch.Tensor | None) -> Run:
    if upstream is None:
        frozen = tuple(tensor.detach() for tensor in inputs)
        return lambda: function(*frozen)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return lambda: torch.autograd.grad(function(*inputs), wanted, upstream)


def _disagreeing(runs: dict[str, Callable[[], Any]], backward: bool) -> list[str]:
    def values(run: Callable[[], Any]) -> tuple[torch.Tensor, ...]:
        found = run()
        return found if isinstance(found, tuple) else (found,)

    ours = values(runs["diffreg"])
    found = []
    for name, run in runs.items():
        for own, other in zip(ours, values(run), strict=True):
            allowed = TOLERANCE[own.dtype] * max(float(own.abs().max()), 1e-6)
            apart = ((own - other).abs() > allowed).float().mean()
            if not apart <= (KINKS if backward else 0):
                found.append(name)
                break
    return found


def _row(case, draw, backward, times, counts, disagrees, compile_seconds, copied) -> Row:
    samples, channels, height, width = draw.shape
    voxels = samples * channels * height * width
    ns = {name: 1e9 * time.median / voxels for name, time in times.items()}
    kernel = times.get("diffreg, in a graph", times["diffreg"]).median
    fewest = case.bytes[0] + (case.bytes[1] if backward else 0)
    item = torch.empty((), dtype=draw.dtype).element_size()
    rate = fewest * item / 4 * voxels / kernel / 1e9
    copy = 2 * copied / times["copy"].median / 1e9
    eager = [value for name, value in ns.items() if name.startswith("eager")]
    return {
        "operator": case.name,
        "direction": "forward + backward" if backward else "forward",
        "shape": list(draw.shape),
        "dtype": str(draw.dtype).removeprefix("torch."),
        "field": draw.field if case.has_field else None,
        "threads": torch.get_num_threads(),
        "nanoseconds_a_pixel": {name: round(value, 3) for name, value in ns.items()},
        "spread": {name: round(time.spread, 3) for name, time in times.items()},
        "speedup": {"best eager": round(min(eager) / ns["diffreg"], 2) if eager else None}
        | {
            name: round(value / ns["diffreg"], 2)
            for name, value in ns.items()
            if not name.startswith(("eager", "diffreg", "copy"))
        },
        "gigabytes_a_second": round(rate, 2),
        "share_of_copy": round(rate / copy, 3),
        "operators": {name: len(count.operators) for name, count in counts.items()},
        "bytes_allocated_a_pixel": {
            name: round(count.allocated / voxels, 2) for name, count in counts.items()
        },
        "disagrees": disagrees,
        "compile_seconds": compile_seconds,
    }
