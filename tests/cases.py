"""One table of the operators, for the tests that hold for all of them, on images and volumes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffreg import ops
from diffreg.ops._objective import MEASURES

Tensors = tuple[torch.Tensor, ...]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Numbers in [-1, 1), the same ones for every dtype up to rounding."""
    values = torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    return (2 * values - 1).to(dtype)


class Calls(TorchDispatchMode):
    """Writes down every call of an operator of ours."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "diffreg":
            self.calls.append((function._opname, args))
        return function(*args, **(kwargs or {}))


# Operators whose result the host has to see, or whose size depends on values; and what the host
# knows, made a tensor: on a GPU a copy there.
WAITING = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"),
    *("aten::is_nonzero", "aten::unique_dim", "aten::_unique2", "aten::bincount"),
    "aten::lift_fresh",
}


class Waits(TorchDispatchMode):
    """Counts what a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        masks = [a for a in args[1:2] if isinstance(a, (list, tuple))]
        by_mask = any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for m in masks for i in m
        )
        if name in WAITING or (name.startswith("aten::index") and by_mask):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Case:
    """An operator with one choice of its options, and how to draw its inputs."""

    name: str  # for the test's id
    operator: str
    inputs: Callable[..., Tensors]  # (samples, channels, size, dtype, seed) -> tensors
    options: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    # Which inputs have a gradient.
    differentiable: tuple[bool, ...] = (True,)

    @property
    def saved(self) -> int:
        """Outputs, from the last, that the backward operator gets and that have no gradient."""
        return {"correlation": 1, "mutual_information": 2}.get(self.operator, 0)

    @property
    def needs(self) -> tuple[bool, ...]:
        """What the backward operator takes behind: which of two gradients are wanted."""
        if self.operator == "affine_warp":  # to the map, and to a displacement
            return (True, len(self.differentiable) == 3)
        choice = len(self.differentiable) == 2 and self.operator != "mutual_information"
        return TWO if choice else ()

    def _options(self, inputs: Tensors) -> dict[str, Any]:
        options = dict(self.options)
        # Of the fixed grid: that of an objective is the second image's.
        image = inputs[int(self.operator == "registration_objective")].detach()
        size = image.shape[2:]
        if "spacing" in options:
            options["spacing"] = options["spacing"][: len(size)]
        if self.masked:
            # 0, 0, 1/4, 1/2, 3/4, 1: exact in every dtype.
            weights = (torch.arange(size.numel()) % 6 - 1).clamp(min=0) / 4
            mask = weights.reshape(1, 1, *size).to(image.dtype)
            options["mask"] = mask.expand(len(image), 1, *size)
        if self.operator == "affine_warp" and len(inputs) == 2:  # no displacement to have it from
            options["size"] = tuple(size)
        return options

    def has_values(self, size: tuple[int, ...]) -> bool:
        """A reduction of determinants needs a cell."""
        return "reduce" not in self.options or (0 not in size and max(size) > 1)

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        return as_tuple(getattr(ops, self.operator)(*inputs, **self._options(inputs)))

    def reference(self, *inputs: torch.Tensor) -> Tensors:
        function = getattr(ops, self.operator + "_reference")
        return as_tuple(function(*inputs, **self._options(inputs)))

    def arguments(self, inputs: Tensors) -> tuple[Any, ...]:
        """What the Python function hands to torch.ops.diffreg.<operator>."""
        o = self._options(inputs)
        unit = [1.0] * (inputs[0].ndim - 2)
        if self.operator == "warp":
            return (*inputs, o.get("interpolation", "linear"), o.get("padding", "border"))
        if self.operator == "affine_warp":
            moving, matrix, displacement = (*inputs, None)[:3]
            wide = matrix.detach().double().requires_grad_(matrix.requires_grad)
            sampling = o.get("interpolation", "linear"), o.get("padding", "border")
            return (moving, wide, displacement, list(o.get("size", ())), *sampling)
        if self.operator == "deformation_energy":
            penalty = o.get("penalty", "hyperelastic")
            return (*inputs, o.get("spacing", unit), penalty, 0.2)
        if self.operator == "jacobian_determinant":
            return (*inputs, o.get("reduce") or "none")
        if self.operator == "gradient_scale":
            return (*inputs, o.get("eta", 1.0), o.get("mask"))
        if self.operator == "correlation":
            return (*inputs, o.get("mask"))
        if self.operator == "mutual_information":
            return (*inputs, o.get("bins", 32), o.get("mask"), None)
        if self.operator == "local_correlation":
            return (*inputs, o["window"], o.get("mask"))
        if self.operator == "registration_objective":
            mixture = [float(name == o["similarity"]) for name in MEASURES]
            energy = (unit, "hyperelastic", 0.2)
            scales = [ops.gradient_scale(image.detach()) for image in inputs[:2]]
            weights, window = [60.0, 1.0, 30.0, 3.0], o.get("window", 9)
            options = (mixture, weights, "border", *energy)
            return (*inputs, *scales, o.get("mask"), *options, *TWO, window)
        scales = [ops.gradient_scale(image.detach()) for image in inputs]
        return (*inputs, *scales, o.get("variant", "pls"), o.get("mask"))


def as_tuple(value: Any) -> Tensors:
    values = (value,) if isinstance(value, torch.Tensor) else tuple(value)
    return tuple(v for v in values if v is not None)


def field_inputs(samples, channels, size, dtype, seed=0, amplitude=0.9) -> Tensors:
    del channels
    return (amplitude * uniform((samples, len(size), *size), dtype, seed),)


def rough_field_inputs(samples, channels, size, dtype, seed=0) -> Tensors:
    return field_inputs(samples, channels, size, dtype, seed, amplitude=3.0)


def image_inputs(samples, channels, size, dtype, seed=0) -> Tensors:
    return (uniform((samples, channels, *size), dtype, seed),)


def pair_inputs(samples, channels, size, dtype, seed=0) -> Tensors:
    shape = (samples, channels, *size)
    return uniform(shape, dtype, seed), uniform(shape, dtype, seed + 100)


def warp_inputs(samples, channels, size, dtype, seed=0) -> Tensors:
    """A moving image of another size than the fixed grid; points up to two grid sizes outside."""
    moving = (samples, channels, *(max(n + (1 if n > 2 else 0), 1) for n in size))
    reach = 2 * max([*size, 1])
    amplitude = torch.tensor([0.6, reach], dtype=dtype)[torch.arange(samples) % 2]
    u = uniform((samples, len(size), *size), dtype, seed + 100)
    return uniform(moving, dtype, seed), u * amplitude.reshape(-1, *[1] * (u.ndim - 1))


def affine_inputs(samples, channels, size, dtype, seed=0) -> Tensors:
    """What warp_inputs draws, behind a map that turns, shears and, every second time, goes far."""
    moving, u = warp_inputs(samples, channels, size, dtype, seed)
    matrix = 0.4 * uniform((samples, len(size), len(size) + 1), torch.float64, seed + 200)
    matrix[..., :-1] += torch.eye(len(size), dtype=torch.float64)
    matrix[1::2, :, -1] *= max([*size, 1])
    return moving, matrix.to(dtype if dtype.itemsize > 2 else torch.float32), u.clamp(-3, 3)


def map_inputs(samples, channels, size, dtype, seed=0) -> Tensors:
    """Without a displacement the fixed grid is as large as the moving one."""
    _, matrix, _ = affine_inputs(samples, channels, size, dtype, seed)
    return uniform((samples, channels, *size), dtype, seed), matrix


def objective_inputs(samples, channels, size, dtype, seed=0) -> Tensors:
    """A moving image of another size than the fixed grid."""
    moving = (samples, channels, *(max(n + (1 if n > 2 else 0), 1) for n in size))
    fixed = uniform((samples, channels, *size), dtype, seed + 100)
    (u,) = field_inputs(samples, channels, size, dtype, seed + 200)
    return uniform(moving, dtype, seed), fixed, u


def objective(name: str, masked: bool = False, **options: Any) -> Case:
    last = (False, False, True)
    return Case(
        name, "registration_objective", objective_inputs, options, masked, differentiable=last
    )


def affine(name: str, needs: tuple[bool, ...], **options: Any) -> Case:
    draw = affine_inputs if len(needs) == 3 else map_inputs
    return Case(name, "affine_warp", draw, options, differentiable=needs)


TWO = (True, True)
CASES = [
    Case("warp-border", "warp", warp_inputs, {}, differentiable=TWO),
    Case("warp-zeros", "warp", warp_inputs, {"padding": "zeros"}, differentiable=TWO),
    Case(
        "warp-nearest",
        "warp",
        warp_inputs,
        {"interpolation": "nearest"},
        differentiable=(True, False),
    ),
    Case(
        "warp-nearest-zeros",
        "warp",
        warp_inputs,
        {"interpolation": "nearest", "padding": "zeros"},
        differentiable=(True, False),
    ),
    Case("energy", "deformation_energy", field_inputs),
    Case("energy-rough", "deformation_energy", rough_field_inputs),
    Case("energy-spacing", "deformation_energy", field_inputs, {"spacing": [0.7, 1.9, 1.3]}),
    Case("energy-log2", "deformation_energy", field_inputs, {"penalty": "log2", "threshold": 0.2}),
    Case("energy-hinge", "deformation_energy", field_inputs, {"penalty": "hinge"}),
    Case("energy-relu", "deformation_energy", field_inputs, {"penalty": "relu"}),
    Case("determinant", "jacobian_determinant", rough_field_inputs),
    Case("determinant-min", "jacobian_determinant", rough_field_inputs, {"reduce": "min"}),
    Case("determinant-mean", "jacobian_determinant", rough_field_inputs, {"reduce": "mean"}),
    Case("correlation", "correlation", pair_inputs, differentiable=TWO),
    Case("correlation-mask", "correlation", pair_inputs, masked=True, differentiable=TWO),
    Case("lncc", "local_correlation", pair_inputs, {"window": 3}, differentiable=TWO),
    Case(
        "lncc-mask",
        "local_correlation",
        pair_inputs,
        {"window": 5},
        masked=True,
        differentiable=TWO,
    ),
    Case("mi", "mutual_information", pair_inputs, differentiable=(True, False)),
    Case(
        "mi-mask",
        "mutual_information",
        pair_inputs,
        {"bins": 9},
        masked=True,
        differentiable=(True, False),
    ),
    Case("pls", "parallel_level_sets", pair_inputs, differentiable=TWO),
    Case("pls-mask", "parallel_level_sets", pair_inputs, masked=True, differentiable=TWO),
    Case("smooth", "parallel_level_sets", pair_inputs, {"variant": "smooth"}, differentiable=TWO),
    Case("ngf", "parallel_level_sets", pair_inputs, {"variant": "ngf"}, differentiable=TWO),
    Case("scale", "gradient_scale", image_inputs, {"eta": 1.7}),
    Case("scale-mask", "gradient_scale", image_inputs, masked=True),
    objective("objective-ssd", similarity="ssd"),
    objective("objective-ncc", similarity="ncc"),
    objective("objective-lncc-mask", masked=True, similarity="lncc", window=5),
    objective("objective-pls", similarity="pls"),
    objective("objective-pls-mask", masked=True, similarity="pls", return_warped=True),
    objective("objective-ngf", similarity="ngf", padding="zeros", spacing=[0.7, 1.9, 1.3]),
    objective(
        "objective-mixture",
        masked=True,
        similarity={"ssd": 0.3, "ncc": 1.0, "lncc": 0.2, "pls": 0.1, "smooth_pls": 0.2, "ngf": 2},
        weights=(2.0, 3.0, 0.5, 0.7),
        penalty="log2",
        threshold=0.3,
    ),
    Case("warp-reflection", "warp", warp_inputs, {"padding": "reflection"}, differentiable=TWO),
    Case("warp-cubic", "warp", warp_inputs, {"interpolation": "cubic"}, differentiable=TWO),
    Case(
        "warp-cubic-reflection",
        "warp",
        warp_inputs,
        {"interpolation": "cubic", "padding": "reflection"},
        differentiable=TWO,
    ),
    affine("affine-border", (True, True, True)),
    affine("affine-zeros", (True, True, True), padding="zeros"),
    affine("affine-cubic", (True, True, True), interpolation="cubic", padding="reflection"),
    affine("affine-nearest", (True, False, False), interpolation="nearest", padding="zeros"),
    affine("affine-map", TWO, padding="reflection"),
    affine("affine-map-cubic", TWO, interpolation="cubic"),
]
# One case an operator, for what does not depend on the options.
PLAIN = [
    case
    for case in CASES
    if case.name
    in (
        *("warp-border", "energy", "determinant", "correlation", "lncc", "mi", "pls", "scale"),
        *("objective-ncc", "affine-border"),
    )
]
