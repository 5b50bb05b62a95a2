"""Every operator and direction, emulated kernel against CPU operator."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from emulation.case_table import ARITHMETIC, Case, Shape, Tensors, uniform

# Of the largest value of a result, by its dtype. Halves: float32, rounded once.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-5 + 2**-11,
    torch.bfloat16: 1e-5 + 2**-8,
}


def as_tuple(value: Any) -> Tensors:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)


def upstreams(case: Case, value: Tensors) -> list[tuple[torch.Tensor | None, ...]]:
    """Gradients to the outputs; those of the energies also one by one."""
    outputs = value[: case.terms or len(value) - case.saved]
    all_of_them = tuple(
        (uniform(tuple(t.shape), torch.float64, 30 + k) - 0.4).to(t.dtype)
        for k, t in enumerate(outputs)
    )
    if case.operator in ("warp", "affine_warp"):  # 0 passes nothing on, not even NaN
        all_of_them[0][:1].flatten(2)[..., :1] = 0
    if len(outputs) == 1:
        return [all_of_them]
    alone = [
        tuple(g if i == k else None for i, g in enumerate(all_of_them)) for k in range(len(outputs))
    ]
    return [all_of_them, *alone]


def convert(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    is_image = (torch.float16, torch.bfloat16)
    return tuple(
        a.to(dtype) if isinstance(a, torch.Tensor) and a.dtype in is_image else a for a in arguments
    )


def calls(
    case: Case, shape: Shape, dtype: torch.dtype, run: Callable[[str, tuple[Any, ...]], Tensors]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every call of the operator and of its backward operator: name and arguments."""
    arguments = case.arguments(shape, dtype)
    for asked in case.asked:
        yield case.operator, (*arguments, *asked)
    value = run(case.operator, (*arguments, *case.asked[-1]))
    saved = value[len(value) - case.saved :]
    for upstream in upstreams(case, value):
        for needs in case.needs:
            yield f"{case.operator}_backward", (*upstream, *saved, *arguments, *needs)


def kept_dtype(operator: str, dtype: torch.dtype) -> torch.dtype:
    """Of an operator's results: images and gradients are stored, the rest is not rounded."""
    stored = operator in ("warp", "affine_warp") or operator.endswith("_backward")
    return dtype if stored else ARITHMETIC.get(dtype, dtype)


def check(name: str, ours: Tensors, theirs: Tensors, wide: torch.dtype) -> float:
    """Largest difference, of the largest value; AssertionError beyond the tolerance.

    Doubles that come out of an arithmetic in float32, `wide`, are as exact as that.
    """
    worst = 0.0
    for own, other in zip(ours, theirs, strict=True):
        assert own.shape == other.shape, f"{name}: {list(own.shape)}, not {list(other.shape)}"
        if own.numel() == 0:
            continue
        assert torch.equal(own.isnan(), other.isnan()), f"{name}: NaN elsewhere"
        other = other.double().nan_to_num()
        apart = (own.double().nan_to_num() - other).abs().max() / other.abs().max().clamp(min=1e-3)
        allowed = max(TOLERANCE[own.dtype], TOLERANCE[wide])
        assert apart <= allowed, f"{name}: {apart:.1e} apart, {allowed} allowed"
        worst = max(worst, float(apart))
    return worst


def compare(emulation: Any, case: Case, shape: Shape, dtype: torch.dtype) -> float:
    """Runs every call emulated and on the CPU; returns the largest difference."""
    wide = ARITHMETIC.get(dtype, dtype)

    def emulated(operator: str, arguments: tuple[Any, ...]) -> Tensors:
        return as_tuple(getattr(emulation.ops, operator)(*arguments))

    worst = 0.0
    for operator, arguments in calls(case, shape, dtype, emulated):
        ours = emulated(operator, arguments)
        theirs = as_tuple(getattr(torch.ops.diffreg, operator)(*convert(arguments, wide)))
        name = f"{operator} ({case.name}, {shape}, {dtype})"
        kept = {kept_dtype(operator, dtype), torch.float64}  # moments are doubles always
        assert {t.dtype for t in ours} <= kept, f"{name} gives {[t.dtype for t in ours]}"
        worst = max(worst, check(name, ours, theirs, wide))
    return worst


def results(emulation: Any, case: Case, shape: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    """The results of every call but those that add in any order on purpose."""

    def emulated(operator: str, arguments: tuple[Any, ...]) -> Tensors:
        return as_tuple(getattr(emulation.ops, operator)(*arguments))

    found: list[torch.Tensor] = []
    for operator, arguments in calls(case, shape, dtype, emulated):
        if operator == "warp_backward" and arguments[-3] and not arguments[-1]:
            continue
        found += emulated(operator, arguments)
    return found
