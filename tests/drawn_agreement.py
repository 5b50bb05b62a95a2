"""Whether an operator agrees with its reference on a group of drawn cases (drawn_operators.py)."""

import hashlib
import math

import torch
from drawn_operators import Case, Group
from drawn_tensors import HALVES

from diffreg import ops

# Upstream gradients, and those of gradients: quarters from -1 to 1. A case takes a part of them.
QUARTERS = torch.randint(-4, 5, (2**20,), generator=torch.Generator().manual_seed(0)) / 4
SIMILARITIES = (
    *("correlation", "mutual_information", "local_correlation", "parallel_level_sets"),
    *("gradient_scale", "registration_objective"),
)
Tensors = list[torch.Tensor]
Results = tuple[Tensors, Tensors]  # values and gradients; gradients of gradients


def upstream(like: torch.Tensor, offset: int) -> torch.Tensor:
    return QUARTERS[offset : offset + like.numel()].reshape(like.shape).to(like.dtype)


def results(group: Group) -> Results:
    """The operator's, of all cases together."""
    function = direct if group.direct else differentiated
    operator = getattr(ops, group.operator)
    found = [function(group, operator, case.inputs, case.tensors, [case]) for case in group.cases]
    once, again = ([torch.cat(x) for x in zip(*of, strict=True)] for of in zip(*found, strict=True))
    return once, again


def direct(group: Group, operator, inputs, tensors, cases) -> Results:
    """The objective's without autograd."""
    function = ops.registration_objective_value_and_gradient
    terms, gradient = function(*inputs, **group.options, **tensors)
    return [*terms[:5], gradient], []


def expected(group: Group) -> Results:
    """The reference's, in float64; but rounding tells a constant image, and the box that an
    intensity between two of them falls into."""
    wide = torch.float64
    if group.operator in ("correlation", "mutual_information"):
        floats = [slot.dtype for slot in group.inputs]
        wide = torch.float64 if torch.float64 in floats else torch.float32
    columns = zip(*(case.inputs for case in group.cases), strict=True)
    inputs = [torch.cat(column) for column in columns]
    inputs = [x.to(wide) if x.is_floating_point() else x for x in inputs]
    tensors = {
        name: torch.cat([case.tensors[name] for case in group.cases]).to(wide)
        for name in group.named
    }
    function = getattr(ops, f"{group.operator}_reference")
    return differentiated(group, function, inputs, tensors, group.cases)


def differentiated(group: Group, function, inputs, tensors, cases: list[Case]) -> Results:
    """Values and gradients of <values, quarters>; if asked for, those of <gradients, quarters>."""
    leaves = [x.detach().requires_grad_(n) for x, n in zip(inputs, group.needs, strict=True)]
    counts = [len(case.inputs[1 if group.alone else 0]) for case in cases]
    handed = leaves
    if group.alone and len(cases) > 1:
        handed = [leaves[0].repeat_interleave(torch.tensor(counts), 0), *leaves[1:]]
    values = function(*handed, **group.options, **tensors)
    values = [values] if isinstance(values, torch.Tensor) else [v for v in values if v is not None]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted:
        return values, []
    if group.direct:
        weights = [torch.full_like(v, float(k == 0)) for k, v in enumerate(values)]
    else:
        weights = [
            stacked(value, cases, counts).requires_grad_(group.twice and value.is_floating_point())
            for value in values
        ]
    found = gradients(values, wanted, weights, group.twice)
    again: Tensors = []
    if group.twice:
        each = [[1] * len(cases) if group.alone and x is leaves[0] else counts for x in wanted]
        pulls = [stacked(x, cases, n) for x, n in zip(found, each, strict=True)]
        known = [weight for weight in weights if weight.requires_grad]
        again = gradients(found, [*wanted, *known], pulls, False)
    return [x.detach() for x in (*values, *found)], again


def stacked(like: torch.Tensor, cases: list[Case], counts: list[int]) -> torch.Tensor:
    """Upstream gradients of all cases, of so many samples each."""
    if len(cases) == 1:
        return upstream(like, cases[0].offset)
    parts = like.detach().split(counts)
    return torch.cat([upstream(x, case.offset) for x, case in zip(parts, cases, strict=True)])


def gradients(outputs: Tensors, inputs: Tensors, weights: Tensors, again: bool) -> Tensors:
    """0 where there are none: no gradient and one that is zero are the same."""
    kept = [k for k, output in enumerate(outputs) if output.requires_grad]
    if not kept:
        return [torch.zeros_like(x) for x in inputs]
    parts = [outputs[k] for k in kept], inputs, [weights[k] for k in kept]
    return list(torch.autograd.grad(*parts, create_graph=again, materialize_grads=True))


def check(group: Group, results: Results, references: Results) -> None:
    """Raises unless they agree; of wild and rough numbers, unless both answer and points that are
    not finite read nothing."""
    found, right = [*results[0], *results[1]], [*references[0], *references[1]]
    # One input in float64 has all computed in it, but a map is always taken for one.
    wide = any(x.dtype == torch.float64 for x in group.inputs if x.kind != "map")
    part = 1e-9 if wide else 2e-4
    for number, (one, other) in enumerate(zip(found, right, strict=True)):
        if one.shape != other.shape:
            raise AssertionError(f"result {number} is {list(one.shape)}, not {list(other.shape)}")
        if not (group.wild or group.rough):
            check_numbers(group, number, one, other, part)
    if group.wild and group.operator == "warp":
        check_unknown_positions(group, found[0])


def check_numbers(group: Group, number: int, one, other, part: float) -> None:
    """Within a part of each number and of its sample's largest, and what its dtype rounds."""
    double = part < 1e-6
    if one.dtype in HALVES or (double and one.is_floating_point()):
        part += 2 * torch.finfo(one.dtype).eps
    wide = other.to(torch.float64)
    size = wide.new_zeros(len(wide))
    if wide.numel():
        size = torch.where(wide.isfinite(), wide, 0).abs().reshape(len(wide), -1).amax(1)
    # A similarity's gradient is a difference of larger terms, and so is one through a cubic: at its
    # minimum, or of a flat image, they cancel.
    cancels = group.operator in SIMILARITIES or group.options.get("interpolation") == "cubic"
    size = size.clamp(min=0.05 if cancels else 0.0).reshape(-1, *[1] * (wide.ndim - 1))
    rounded = rounding_of_terms(group, wide.ndim, double) if number else 0.0
    off = (one.to(torch.float64) - wide).abs()
    good = (one == other.to(one.dtype)) | (one.isnan() & wide.isnan())  # infinite in float16, too
    if one.is_floating_point():
        good = good | (off <= part * (wide.abs() + size) + rounded + 1e-30)
    if not good.all():
        at = tuple((~good).nonzero()[0].tolist())
        raise AssertionError(
            f"result {number} at {at}: {one[at].item()!r}, not {wide[at].item()!r}, the largest "
            f"{size[at[0]].max().item():.3g}; {int((~good).sum())} of {good.numel()}"
        )


def rounding_of_terms(group: Group, axes: int, wide: bool) -> float:
    """Of gradients whose terms are much larger than they: a local correlation's are its windows'
    slopes, up to 2 / deviation each, over the voxels, and images of steps of 1/32 have deviations
    from 1/64 on; a map's are the points' slopes times their coordinates."""
    eps = torch.finfo(torch.float64 if wide else torch.float32).eps
    lncc = "lncc" in group.options.get("similarity", ())
    size = group.inputs[-1].shape[1:] if len(group.inputs) > 2 else group.options.get("size", ())
    voxels = math.prod(size if group.operator == "affine_warp" else group.inputs[-1].shape)
    if group.operator == "affine_warp" and axes == 3 and voxels:
        return 2 * eps * max(size) * math.sqrt(voxels)
    if voxels and (group.operator == "local_correlation" or lncc):
        factor = 4 if lncc else 1  # weight and share, the largest drawn
        return 8 * eps * factor * 128 / voxels
    return 0.0


def check_unknown_positions(group: Group, warped: torch.Tensor) -> None:
    """Where a displacement is not finite, so is no warped value; a label there is 0."""
    displacement = torch.cat([case.inputs[1] for case in group.cases])
    unknown = ~torch.isfinite(displacement).all(1, keepdim=True).expand_as(warped)
    read = warped[unknown]
    if not (read.isnan().all() if warped.is_floating_point() else not read.any()):
        raise AssertionError("an unknown position reads something")


def digest_of(tensors: Tensors) -> str:
    """Of the bits; one NaN is as good as another."""
    digest = hashlib.blake2b(digest_size=8)
    for x in tensors:
        if x.is_floating_point():
            x = x.masked_fill(x.isnan(), float("nan"))
        bits = torch.uint8 if x.element_size() == 1 else torch.int16
        digest.update(x.contiguous().flatten().view(bits).numpy())
    return digest.hexdigest()
