"""One row of the operators' table: ours against every candidate on one draw of inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from diffreg.benchmark.cases import Case, Draw, Function, Tensors, as_tensors
from diffreg.benchmark.counting import counted
from diffreg.benchmark.peers import FORWARD_ONLY
from diffreg.benchmark.timing import Graph, Run, interleaved, yardstick
from diffreg.system.memory import kept_memory

Row = dict[str, Any]
# Of the largest value. Gradients: at a kink (a point on a voxel centre, level sets that cross)
# rounding decides which side a derivative is of, so that few voxels may be farther apart.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
KINKS = 1e-2


def measure(
    case: Case,
    draw: Draw,
    backward: bool,
    compiled: bool = False,
    seconds: float = 2.0,
    kept: bool = False,
) -> Row:
    """Times, rates and counts of one operator on one draw.

    Args:
        case, draw: what is run, and on what.
        backward: forward and backward, to every input that requires a gradient; else forward alone.
        compiled: also torch.compile of the form that it makes most of.
        seconds: about how long the timing may take.
        kept: freed memory stays in the process; else the C library gives large blocks back.

    Returns:
        A row of the results, see schema.json. A candidate whose value or gradient is another one
        than ours stands under "disagrees", without a time.
    """
    with kept_memory() if kept else nullcontext():
        return _measured(case, draw, backward, compiled, seconds, kept)


def _measured(
    case: Case, draw: Draw, backward: bool, compiled: bool, seconds: float, kept: bool
) -> Row:
    inputs = case.inputs(draw)
    upstream = _upstream(as_tensors(case.ours(*inputs)))
    candidates: dict[str, Function] = {"diffreg": case.ours}
    for number, function in enumerate(_eager(case, inputs)):
        candidates[f"eager {number + 1}"] = function
    for name, function in case.peers(inputs[0]).items():
        if not (backward and name in FORWARD_ONLY):
            candidates[name] = function
    compile_seconds = None
    if compiled:
        begin = time.perf_counter()
        candidates["torch.compile"] = _compiled(case, inputs)
        # What an earlier process compiled would be found again, in no time.
        with torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
            _run(candidates["torch.compile"], inputs, upstream if backward else None)()
        compile_seconds = round(time.perf_counter() - begin, 1)
    # At the zero field every point is on a voxel centre, a kink: values alone are compared there.
    at_kinks = draw.field == "zero" and case.has_field
    disagrees = _disagreeing(candidates, inputs, upstream if backward and not at_kinks else None)
    runs = {
        name: _run(function, inputs, upstream if backward else None)
        for name, function in candidates.items()
        if name not in disagrees
    }
    counts = {name: counted(runs[name]) for name in runs if name.startswith(("diffreg", "eager"))}
    moved = 2 * inputs[0].nbytes
    timed: dict[str, Run] = dict(runs)
    if draw.device == "cuda":
        moved = _fewest(case, draw, backward)
        timed["diffreg, in a graph"] = Graph(runs["diffreg"])
    timed["copy"] = yardstick(moved, draw.device)
    times = interleaved(timed, draw.device, seconds)
    conditions = {
        "operator": case.name,
        "direction": "forward + backward" if backward else "forward",
        "shape": list(draw.shape),
        "dtype": str(draw.dtype).removeprefix("torch."),
        "field": draw.field if case.has_field else None,
        "threads": torch.get_num_threads(),
        "memory": "kept" if kept else "given back",
    }
    found = _figures(case, draw, backward, times, counts, moved)
    return conditions | found | {"disagrees": disagrees, "compile_seconds": compile_seconds}


def _eager(case: Case, inputs: Tensors) -> list[Function]:
    """The forms in PyTorch; of half types in float32, as their users have to."""
    if inputs[0].dtype not in (torch.float16, torch.bfloat16):
        return list(case.eager(inputs))

    def in_float32(form: Function) -> Function:
        return lambda *tensors: form(*(tensor.float() for tensor in tensors))

    forms = case.eager(tuple(tensor.detach().float() for tensor in inputs))
    return [in_float32(form) for form in forms]


def _compiled(case: Case, inputs: Tensors) -> Function:
    detached = tuple(tensor.detach().float() for tensor in inputs)
    return torch.compile(case.to_compile(detached), dynamic=False)


def _upstream(values: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(value.shape, generator=generator).to(value) for value in values)


def _run(function: Function, inputs: Tensors, upstream: Tensors | None) -> Callable[[], Any]:
    if upstream is None:
        frozen = tuple(tensor.detach() for tensor in inputs)
        return lambda: function(*frozen)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]

    def both() -> tuple[torch.Tensor, ...]:
        values = as_tensors(function(*inputs))
        given = [g.to(value.dtype) for g, value in zip(upstream, values, strict=True)]
        return torch.autograd.grad(values, wanted, given)

    return both


def _disagreeing(
    candidates: dict[str, Function], inputs: Tensors, upstream: Tensors | None
) -> list[str]:
    """Those whose value or, with an upstream gradient, whose gradients are others than ours."""

    def results(function: Function) -> list[torch.Tensor]:
        found = as_tensors(_run(function, inputs, None)())
        gradients = () if upstream is None else _run(function, inputs, upstream)()
        return [*found, *gradients]

    values = len(upstream) if upstream else len(as_tensors(candidates["diffreg"](*inputs)))
    ours = results(candidates["diffreg"])
    disagreeing = []
    for name, function in candidates.items():
        for k, (own, other) in enumerate(zip(ours, results(function), strict=True)):
            allowed = TOLERANCE[inputs[0].dtype] * max(float(own.abs().max()), 1e-6)
            apart = ((own - other).abs() > allowed).float().mean()
            if not apart <= (KINKS if k >= values else 0):
                disagreeing.append(name)
                break
    return disagreeing


def _fewest(case: Case, draw: Draw, backward: bool) -> int:
    """Bytes that the work has to move."""
    a_voxel = case.bytes(draw.shape[1], draw.dimensions)[backward]
    return a_voxel * draw.dtype.itemsize * draw.voxels // 4


def _figures(case, draw, backward, times, counts, copied) -> Row:
    ns = {name: 1e9 * time.median / draw.voxels for name, time in times.items()}
    kernel = times.get("diffreg, in a graph", times["diffreg"]).median
    rate = _fewest(case, draw, backward) / kernel / 1e9
    copy = copied / times["copy"].median / 1e9
    eager = [value for name, value in ns.items() if name.startswith("eager")]
    return {
        "nanoseconds_a_voxel": {name: round(value, 3) for name, value in ns.items()},
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
        "bytes_allocated_a_voxel": {
            name: round(count.allocated / draw.voxels, 2) for name, count in counts.items()
        },
    }


def second_derivative(case: Case, draw: Draw) -> Row:
    """Bytes a voxel that the gradient of a gradient allocates: plain PyTorch computes it."""
    inputs = case.inputs(draw)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]

    def penalty() -> tuple[torch.Tensor, ...]:
        values = [value.square().sum() for value in as_tensors(case.ours(*inputs))]
        first = torch.autograd.grad(torch.stack(values).sum(), wanted, create_graph=True)
        return torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), wanted)

    allocated = counted(penalty).allocated / draw.voxels
    return {
        "operator": case.name,
        "shape": list(draw.shape),
        "bytes_allocated_a_voxel": round(allocated, 1),
    }
