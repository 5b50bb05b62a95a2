"""Operator cases drawn by the million: options, shapes, dtypes, strides and numbers from a seed.

A group is up to 16 cases of one operator with the same grid, channels, dtypes and options, so that
the reference is evaluated once for all of them (tests/drawn_agreement.py). Each case is a call of
its own with its own samples (0 to 3), numbers, strides, masks and upstream gradients.

Groups take the ten operators in turn, half of them 2-D and half 3-D. An axis has 1 to 9 voxels,
the last one also lengths around multiples of 8 and 16 up to 66, and one in 3 any up to 67; one grid
in 3 has its axes shuffled, one in 40 an axis of 0, one in 60 is larger. Half of the groups have one
dtype, half one drawn for each tensor. One in 10 of those without half types is differentiated
twice, in at most 2 cases. One in 8 is wild: each of its tensors has a number that is not finite or
not ordinary. Of the others one in 6 is rough, and of the rest with a mask one in 3 hides what is
not finite behind a weight of 0.

Ordinary numbers are multiples of 1/32: positions and determinants are then exact in every dtype, so
operator and reference take the same branch at every kink, and what differs is rounding alone. But
exact numbers have the same bits however they are added up: rough ones have not, and are compared by
their bits between variants alone, as are wild ones.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from drawn_tensors import FLOATING, HALVES, LABELS, LAYOUTS, WEIGHTS, WILD, Draw, Slot, laid_out

MOST = 16  # cases of a group


@dataclass
class Case:
    """One call: its tensors, and where its upstream gradients begin among all of them."""

    inputs: list[torch.Tensor]
    tensors: dict[str, torch.Tensor]  # those given by name, which are constants
    offset: int


@dataclass
class Group:
    """Cases that share all but their tensors."""

    operator: str
    options: dict[str, Any]
    inputs: list[Slot]
    named: dict[str, Slot] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    needs: tuple[bool, ...] = ()  # of the inputs, which have a gradient
    alone: bool = False  # one moving image for all maps
    direct: bool = False  # value and gradient without autograd
    twice: bool = False  # differentiated twice
    wild: bool = False
    rough: bool = False

    def __str__(self) -> str:
        tensors = [
            [f"{name}{list(x.shape)} {str(x.dtype)[6:]} {x.stride()}" for name, x in named]
            for case in self.cases
            for named in [[*(("", x) for x in case.inputs), *case.tensors.items()]]
        ]
        flags = [n for n in ("alone", "direct", "twice", "wild", "rough") if getattr(self, n)]
        return f"{self.operator} {self.options} needs {self.needs} {flags} {tensors}"


def of_warp(draw: Draw, dimensions: int) -> Group:
    interpolation, padding = sampling(draw)
    image, field_ = draw.dtypes(2)
    if interpolation == "nearest" and draw.one_in(2):
        image = draw.of(*LABELS)
    moving = Slot((channels(draw), *draw.size(dimensions, empty=False)), image, 4)
    displacement = Slot((dimensions, *draw.size(dimensions)), field_, draw.of(0.25, 1, 4))
    options = {"interpolation": interpolation, "padding": padding}
    return Group("warp", options, [moving, displacement])


def of_affine_warp(draw: Draw, dimensions: int) -> Group:
    group = of_warp(draw, dimensions)
    moving, displacement = group.inputs
    matrix = Slot((dimensions, dimensions + 1), draw.of(torch.float32, torch.float64), kind="map")
    if draw.one_in(3):
        group.inputs = [moving, matrix]
        group.options |= {"displacement": None, "size": displacement.shape[1:]}
    else:
        group.inputs = [moving, matrix, displacement]
    group.operator, group.alone = "affine_warp", draw.one_in(4)
    return group


def sampling(draw: Draw) -> tuple[str, str]:
    return draw.of("linear", "nearest", "cubic"), draw.of("border", "zeros", "reflection")


def channels(draw: Draw) -> int:
    return draw.of(1, 1, 2, 3)


def of_deformation_energy(draw: Draw, dimensions: int) -> Group:
    slot = Slot((dimensions, *draw.size(dimensions)), *draw.dtypes(1), draw.of(0.25, 4))
    return Group("deformation_energy", energy_options(draw, dimensions), [slot])


def energy_options(draw: Draw, dimensions: int) -> dict[str, Any]:
    penalty = draw.of("hyperelastic", "log2", "hinge", "relu")
    threshold = None if penalty == "relu" else draw.of(None, None, 0.3)
    spacing = draw.of(None, 2.0, (1.0, 1.5, 0.5)[:dimensions], (0.25, 3.0, 1.0)[:dimensions])
    return {"penalty": penalty, "threshold": threshold, "spacing": spacing}


def of_jacobian_determinant(draw: Draw, dimensions: int) -> Group:
    reduce, size = draw.of(None, "min", "mean", "bound"), draw.size(dimensions)
    if 0 in size or sum(n > 1 for n in size) < 2:
        reduce = None  # over no cell it raises
    slot = Slot((dimensions, *size), *draw.dtypes(1), draw.of(0.25, 4))
    return Group("jacobian_determinant", {"reduce": reduce}, [slot])


def of_pair(operator: str, draw: Draw, dimensions: int, options: dict[str, Any]) -> Group:
    shape = (channels(draw), *draw.size(dimensions))
    group = Group(operator, options, [Slot(shape, dtype) for dtype in draw.dtypes(2)])
    return masked(draw, group)


def masked(draw: Draw, group: Group) -> Group:
    if draw.one_in(2):
        grid = group.inputs[-1 if group.operator != "registration_objective" else 1].shape[1:]
        group.named["mask"] = Slot((1, *grid), draw.of(*WEIGHTS), kind="weights")
    return group


def of_correlation(draw: Draw, dimensions: int) -> Group:
    return of_pair("correlation", draw, dimensions, {})


def of_mutual_information(draw: Draw, dimensions: int) -> Group:
    group = of_pair("mutual_information", draw, dimensions, {"bins": draw.of(5, 8, 9, 32)})
    if draw.one_in(3):
        moving = Slot((channels(draw), *draw.size(dimensions)), draw.of(*FLOATING), 2)
        group.named["moving"] = moving
    return group


def of_local_correlation(draw: Draw, dimensions: int) -> Group:
    return of_pair("local_correlation", draw, dimensions, {"window": draw.of(1, 3, 5, 9, 31)})


def of_parallel_level_sets(draw: Draw, dimensions: int) -> Group:
    group = of_pair(
        "parallel_level_sets", draw, dimensions, {"variant": draw.of("pls", "smooth", "ngf")}
    )
    return with_scales(draw, group, "eps_warped", "eps_fixed")


def with_scales(draw: Draw, group: Group, *names: str) -> Group:
    """Measured, one for all samples, or one a sample."""
    for name in names:
        scale = draw.of(None, None, 0.1, 1.0, "each")
        if scale == "each":
            group.named[name] = Slot((), draw.of(torch.float32, torch.float64), kind="scale")
        else:
            group.options[name] = scale
    return group


def of_gradient_scale(draw: Draw, dimensions: int) -> Group:
    slot = Slot((channels(draw), *draw.size(dimensions)), *draw.dtypes(1))
    return masked(draw, Group("gradient_scale", {"eta": draw.of(1.0, 0.25, 3.0)}, [slot]))


def of_registration_objective(draw: Draw, dimensions: int) -> Group:
    size, number, dtypes = draw.size(dimensions), channels(draw), draw.dtypes(3)
    moving = size if draw.one_in(2) and 0 not in size else draw.size(dimensions, empty=False)
    inputs = [Slot((number, *moving), dtypes[0]), Slot((number, *size), dtypes[1])]
    inputs.append(Slot((dimensions, *size), dtypes[2], draw.of(0.25, 1, 4)))
    names = ("ssd", "ncc", "lncc", "pls", "smooth_pls", "ngf")
    mixture = {draw.of(*names): draw.of(0.5, 1.0, 2.0) for _ in range(draw.of(1, 2, 3))}
    options = energy_options(draw, dimensions) | {
        "similarity": draw.of(*names) if draw.one_in(2) else mixture,
        "weights": tuple(draw.of(0.0, 0.5, 1.0, 2.0) for _ in range(4)),
        "padding": draw.of("border", "zeros", "reflection"),
        "window": draw.of(1, 3, 5, 9),
    }
    group = masked(draw, Group("registration_objective", options, inputs))
    group.direct = draw.one_in(6)
    if not group.direct:
        options["return_warped"] = draw.one_in(3)
    return with_scales(draw, group, "eps_moving", "eps_fixed")


PLANS = {
    "warp": of_warp,
    "affine_warp": of_affine_warp,
    "deformation_energy": of_deformation_energy,
    "jacobian_determinant": of_jacobian_determinant,
    "correlation": of_correlation,
    "mutual_information": of_mutual_information,
    "local_correlation": of_local_correlation,
    "parallel_level_sets": of_parallel_level_sets,
    "gradient_scale": of_gradient_scale,
    "registration_objective": of_registration_objective,
}


def drawn(block: int, index: int) -> Group:
    """The group of that number; the operators come in turn."""
    draw = Draw(block, index)
    operator = list(PLANS)[index % len(PLANS)]
    group = PLANS[operator](draw, draw.of(2, 3))
    slots = [*group.inputs, *group.named.values()]
    group.wild = draw.one_in(8)
    group.needs = needs_of(draw, group)
    halves = any(slot.dtype in HALVES for slot in slots)
    group.twice = not halves and not group.direct and any(group.needs) and draw.one_in(10)
    group.rough = draw.rough = not group.wild and not group.twice and draw.one_in(6)
    ordinary = not group.wild and not group.rough
    hidden = "mask" in group.named and ordinary and draw.one_in(3)
    voxels = max(math.prod(slot.shape) for slot in slots)
    most = 2 if group.twice else MOST  # that of the operators is as slow as the reference's
    for _ in range(min(most, max(1, 12000 // max(voxels, 1)))):
        group.cases.append(case_of(draw, group, hidden))
    return group


def needs_of(draw: Draw, group: Group) -> tuple[bool, ...]:
    """Which inputs have a gradient: of an objective mostly the displacement alone."""
    possible = [slot.dtype.is_floating_point for slot in group.inputs]
    if group.options.get("reduce") == "bound" or (draw.one_in(12) and not group.direct):
        return (False,) * len(possible)
    if group.operator == "registration_objective":
        if group.direct or not draw.one_in(4):
            return (False, False, True)
    elif draw.one_in(4):
        return tuple(p and draw.one_in(2) for p in possible)
    return tuple(possible)


def case_of(draw: Draw, group: Group, hidden: bool) -> Case:
    samples = draw.of(1, 1, 1, 1, 2, 2, 3) if not draw.one_in(20) else 0
    first = 1 if group.alone else samples
    inputs = [draw.tensor(s, samples if k else first) for k, s in enumerate(group.inputs)]
    named = {name: draw.tensor(slot, samples) for name, slot in group.named.items()}
    if len(inputs) == 2 and inputs[0].shape == inputs[1].shape and draw.one_in(10):
        inputs[1] = inputs[0].to(inputs[1].dtype)  # images of one another
    if group.wild:
        for x in inputs:
            if x.is_floating_point() and x.numel():
                number = torch.tensor(draw.of(*WILD), dtype=torch.float64).to(x.dtype)
                x.view(-1)[draw.below(x.numel())] = number
    named = {n: laid_out(x, draw.of(*LAYOUTS)) if x.ndim > 3 else x for n, x in named.items()}
    if hidden:
        on_grid = inputs[1:2] if group.operator == "registration_objective" else inputs
        for x in on_grid:
            x.masked_fill_(named["mask"] == 0, draw.of(*WILD[:3]))
    layouts = LAYOUTS[:-1] if hidden else LAYOUTS  # expanded, what is hidden would be elsewhere
    inputs = [laid_out(x, draw.of(*layouts)) if x.ndim > 3 else x for x in inputs]
    return Case(inputs, named, draw.below(2**16))
