"""Every operator with every option, on sizes that meet the edges of the kernels' tiles."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffreg.ops._objective import MEASURES

Tensors = tuple[torch.Tensor, ...]

ARITHMETIC = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def uniform(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Shape:
    samples: int
    channels: int
    size: tuple[int, ...]


# Flat and thin ones; tiles of 32 columns, 6 to 8 rows, 8 and 32 planes, with one voxel less or
# more; two tiles of 120 columns; rows of packs of two voxels, but not of four.
VOLUMES: list[tuple[int, ...]] = [
    (1, 1, 1),
    (5, 4, 31),
    (34, 9, 6),
    (2, 2, 2),
    (1, 4, 3),
    (3, 1, 2),
    (4, 7, 30),
    (3, 17, 61),
    (9, 7, 124),
    (2, 3, 66),
]


@dataclass(frozen=True)
class Case:
    """An operator with one choice of its options."""

    name: str
    operator: str
    # (shape, dtype) -> the operator's tensors
    inputs: Callable[[Shape, torch.dtype], Tensors]
    options: tuple[Any, ...] = ()
    masked: bool | None = None  # None: the operator has no mask
    # What the backward operator takes behind: one choice of needs, or more.
    needs: tuple[tuple[Any, ...], ...] = ((),)
    saved: int = 0  # outputs, from the last, that the backward operator gets before the inputs
    # Rows and columns that a block or, where they march down, a warp works on where there are few
    # tiles: forward and backward differ by one or two, which the sizes beside them meet.
    tile: tuple[int, int] = (7, 29)
    # What the operator alone takes behind: one choice of what to return, or more.
    asked: tuple[tuple[Any, ...], ...] = ((),)
    terms: int | None = None  # outputs, from the first, that have a gradient; None: all but saved
    dimensions: int = 2

    def size(self, image: tuple[int, int], volume: tuple[int, int, int]) -> tuple[int, ...]:
        """The one of its dimensions."""
        return image if self.dimensions == 2 else volume

    def mask(self, shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
        if self.masked is None:
            return ()
        if not self.masked:
            return (None,)
        mask = (uniform((shape.samples, 1, *shape.size), torch.float64, 7) - 0.2).clamp(min=0)
        return (mask.to(ARITHMETIC.get(dtype, dtype)),)

    def arguments(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, ...]:
        """What the operator and its backward operator have in common."""
        return (*self.inputs(shape, dtype), *self.options, *self.mask(shape, dtype))

    def images(self, full: bool) -> list[tuple[int, ...]]:
        """1, a tile less one, a tile, a tile and one, two tiles and one: along both axes."""
        edges = [[1, n - 1, n, n + 1, 2 * n + 1] for n in self.tile]
        sizes = [(h, w) for h in edges[0] for w in edges[1]]
        return sizes if full else [sizes[k] for k in (0, 8, 18, 24)]

    def shapes(self, dtype: torch.dtype, full: bool = False) -> list[Shape]:
        """Two samples of three channels or of one, never as many as samples; of all sizes, or of a
        few."""
        volumes = VOLUMES if full else VOLUMES[:3]
        sizes = self.images(full) if self.dimensions == 2 else volumes
        # The first is of one voxel: the correlation of two numbers is 1 or -1, its gradient nothing
        # but rounding.
        return [Shape(2, 1 if k % 2 else 3, size) for k, size in enumerate(sizes)]


class Windowed(Case):
    """A warp owns 120 columns or 128, and loads four at once where rows are whole quads."""

    def images(self, full: bool) -> list[tuple[int, ...]]:
        rows, columns = (1, 15, 16, 17, 33), (1, 119, 120, 121, 124, 128, 129, 244)
        few: list[tuple[int, ...]] = [(1, 1), (15, 124), (17, 121), (33, 260)]
        return [(h, w) for h in rows for w in columns] if full else few

    def shapes(self, dtype: torch.dtype, full: bool = False) -> list[Shape]:
        found = super().shapes(dtype, full)
        return found if self.dimensions == 2 else [*found, Shape(2, 2, (3, 6, 124))]


class Hidden(Case):
    """Where its mask is 0, the images hold NaN and infinity here and there."""

    def arguments(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, ...]:
        mask = self.mask(shape, dtype)
        found = [hide(t, mask[0]) if t.ndim > 1 else t for t in self.inputs(shape, dtype)]
        return (*found, *self.options, *mask)


class Beside(Case):
    """One number that counts is NaN: of the last sample beside some that count, too, of the first
    beside none, so that no difference that counts reads it; but where an axis has one voxel, along
    which a number less itself is NaN in one order of the axes and nothing in the other."""

    def arguments(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, ...]:
        image, *others = self.inputs(shape, dtype)
        (mask,) = self.mask(shape, dtype)
        if min(shape.size) > 1:
            mask[(0, 0, *(slice(n // 2 - 1, n // 2 + 2) for n in shape.size))] = 0
        for sample in (0, -1):
            middle = (sample, 0, *(n // 2 for n in shape.size))
            image[middle], mask[middle] = torch.nan, 0.5
        return (image, *others, *self.options, mask)


class Objective(Case):
    """Its mask comes before its options; strips of the gradient are narrower than the value's."""

    def arguments(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, ...]:
        return (*self.inputs(shape, dtype), *self.mask(shape, dtype), *self.options)

    def images(self, full: bool) -> list[tuple[int, ...]]:
        rows, columns = (1, 7, 8, 9, 17), (1, 27, 28, 29, 30, 31, 57, 61)
        few: list[tuple[int, ...]] = [(1, 1), (7, 29), (8, 30), (17, 61)]
        return [(h, w) for h in rows for w in columns] if full else few


class Information(Case):
    """The last of its images is the moving one, or there are two; it comes last. Of one sample, one
    number that counts may be unknown."""

    def arguments(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, ...]:
        mask = self.mask(shape, dtype)
        warped, fixed, *moving = self.inputs(shape, dtype)
        if self.name.startswith("mi-heavy"):  # each sample's unit is another
            units = torch.tensor([1e3, 1e-3])[: shape.samples]
            mask = (mask[0] * units.view(-1, *(1 for _ in mask[0].shape[1:])),)
        if self.name.startswith("mi-unknown"):
            middle = (-1, 0, *(n // 2 for n in shape.size))
            image, bad = (warped, torch.nan) if "warped" in self.name else (fixed, torch.inf)
            image[middle], mask[0][middle] = bad, 0.5
        if self.name.startswith("mi-hidden"):
            warped, fixed = hide(warped, mask[0]), hide(fixed, mask[0])
        return (warped, fixed, *self.options, *mask, *(moving or [None]))


class Mapped(Case):
    """A map, then a displacement or, without one, the size of the fixed grid."""

    def arguments(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, ...]:
        moving, matrix, *field = self.inputs(shape, dtype)
        size = [] if field else list(shape.size)
        return (moving, matrix, *(field or [None]), size, *self.options)


class HiddenObjective(Objective):
    """Its mask is 0, too, where a voxel reads what is not finite of the moving image. By a field of
    zeros there are voxels whose value is finite, and whose derivative is not."""

    def arguments(self, shape: Shape, dtype: torch.dtype) -> tuple[Any, ...]:
        moving, fixed, u, *scales = self.inputs(shape, dtype)
        u = u * 0 if "still" in self.name else u
        (mask,) = self.mask(shape, dtype)
        moving = moving.clone()
        if max(shape.size) > 1:  # a correlation needs three numbers
            middle = moving[:, :1].select(2, moving.shape[2] // 2)
            middle[..., moving.shape[-1] // 2 :] = torch.nan
        wide = [t.to(ARITHMETIC.get(dtype, dtype)) for t in (moving, u)]
        warped = torch.ops.diffreg.warp(*wide, "linear", self.options[2])
        ones = torch.ones_like(warped)
        _, slope = torch.ops.diffreg.warp_backward(
            ones, *wide, "linear", self.options[2], False, True
        )
        reads = torch.cat([warped, slope], 1).isfinite().all(1, keepdim=True)
        mask = mask * reads
        return (moving, hide(fixed, mask), u, *scales, mask, *self.options)


def hide(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The image with NaN and infinity at every second voxel of weight 0."""
    image = image.clone()
    for k, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        n, _, *voxel = (mask == 0).nonzero()[2 * k :: 6].T
        image[(n, k % image.shape[1], *voxel)] = bad
    return image


def fields(amplitude: float) -> Callable[[Shape, torch.dtype], Tensors]:
    def make(shape: Shape, dtype: torch.dtype) -> Tensors:
        size = (shape.samples, len(shape.size), *shape.size)
        return (((uniform(size, dtype, 1) - 0.5) * amplitude).to(dtype),)

    return make


def images(count: int) -> Callable[[Shape, torch.dtype], Tensors]:
    def make(shape: Shape, dtype: torch.dtype) -> Tensors:
        size = (shape.samples, shape.channels, *shape.size)
        return tuple(uniform(size, dtype, 10 + k) for k in range(count))

    return make


def pair_and_moving(shape: Shape, dtype: torch.dtype) -> Tensors:
    """A moving image of another size and number of channels, of fewer intensities, one NaN."""
    size = (shape.samples, 1, *(2 * n for n in shape.size))  # and of more tiles
    moving = 0.2 + 0.6 * uniform(size, torch.float64, 12)
    moving.view(-1)[-1] = torch.nan
    return (*images(2)(shape, dtype), moving.to(dtype))


def pair_with_scales(shape: Shape, dtype: torch.dtype) -> Tensors:
    wide = ARITHMETIC.get(dtype, dtype)
    scales = (0.2 + uniform((shape.samples,), wide, 20 + k) for k in range(2))
    return (*images(2)(shape, dtype), *scales)


def pair_with_one_scale(shape: Shape, dtype: torch.dtype) -> Tensors:
    """As floats are handed over: one on the host for all samples."""
    *pair, scale, _ = pair_with_scales(shape, dtype)
    return (*pair, scale[:1].expand(shape.samples), scale[:1].expand(shape.samples))


def leave_unknown(u: torch.Tensor) -> None:
    """Makes the last voxel's place NaN, and the first one's, whose gradient `upstreams` has 0."""
    u.view(-1)[-1:] = torch.nan
    u[:1, :1].flatten()[:1] = torch.nan


def moving_and_field(shape: Shape, dtype: torch.dtype) -> Tensors:
    """A moving image of another size; every second field leaves the image."""
    first, *between, last = shape.size
    size = (first + 2, *between, max(last - 1, 1))
    moving = uniform((shape.samples, shape.channels, *size), dtype, 2)
    u = uniform((shape.samples, len(size), *shape.size), torch.float64, 3) - 0.5
    u[1::2] *= 2.2 * max(shape.size)
    leave_unknown(u)
    return moving, (1.7 * u).to(dtype)


def moving_and_map(shape: Shape, dtype: torch.dtype) -> Tensors:
    """Maps of few digits: points are exact, wherever a kernel counts them from."""
    moving, _ = moving_and_field(shape, dtype)
    dimensions = len(shape.size)
    matrix = 0.8 * (uniform((shape.samples, dimensions, dimensions + 1), torch.float64, 4) - 0.5)
    matrix[..., :-1] += torch.eye(dimensions)
    matrix[1::2, :, -1] *= max(shape.size)
    return moving, (64 * matrix).round() / 64


def one_moving_and_map(shape: Shape, dtype: torch.dtype) -> Tensors:
    moving, matrix = moving_and_map(shape, dtype)
    return moving[:1], matrix


def moving_map_and_field(shape: Shape, dtype: torch.dtype) -> Tensors:
    u = 1.7 * uniform((shape.samples, len(shape.size), *shape.size), torch.float64, 3) - 0.8
    u = (64 * u).round() / 64
    leave_unknown(u)
    return (*moving_and_map(shape, dtype), u.to(dtype))


def objective_inputs(shape: Shape, dtype: torch.dtype) -> Tensors:
    """As above, without NaN, beside a fixed image and edge scales."""
    moving, u = moving_and_field(shape, torch.float64)
    u = torch.cat([u[:1], u[1:] * 8 / max(shape.size)]).nan_to_num(0.3)
    fixed, *scales = pair_with_scales(shape, dtype)[1:]
    return (moving.to(dtype), fixed, u.to(dtype), *scales)


def objective_inputs_with_nan(shape: Shape, dtype: torch.dtype) -> Tensors:
    """In every stencil there is, or else in none."""
    moving, fixed, u, *scales = objective_inputs(shape, dtype)
    if min(shape.size, default=0) > 2 and u.numel():
        u[(-1, 0, *(n // 2 for n in shape.size))] = torch.nan
    return (moving, fixed, u, *scales)


ASKED = ((False, True), (True, True), (True, False), (False, False))


def objective_cases() -> Iterator[Case]:
    everything = dict(zip(MEASURES, (0.7, 1.3, 0.8, 0.4, 0.6, 0.5), strict=True))
    for name, mixture, masked, padding, penalty, threshold in (
        ("ssd", {"ssd": 1.5}, False, "zeros", "hyperelastic", 0.2),
        ("ncc", {"ncc": 1.0}, True, "border", "log2", 0.1),
        ("default", {"ncc": 1.0, "lncc": 0.2}, False, "border", "hyperelastic", 0.2),
        ("pls", {"pls": 1.0}, True, "reflection", "hinge", 0.3),
        ("smooth", {"smooth_pls": 2.0}, False, "zeros", "relu", 0.0),
        ("ngf", {"ngf": 1.0}, False, "border", "hyperelastic", 0.2),
        ("mixture", everything, True, "border", "hyperelastic", 0.2),
        ("nan", {"ssd": 1.0, "pls": 1.0}, False, "border", "log2", 0.1),
        ("hidden", everything, True, "zeros", "log2", 0.1),
        ("hidden-ncc", {"ncc": 1.0}, True, "border", "log2", 0.1),
        ("hidden-still", everything, True, "border", "log2", 0.1),
        ("window-5", {"lncc": 1.0}, True, "border", "log2", 0.1),
        ("window-11", {"ssd": 1.0, "lncc": 0.2}, False, "zeros", "relu", 0.0),
    ):
        window = tuple(map(int, name.partition("window-")[2].split()))  # by itself it is 9
        factors = [mixture.get(measure, 0.0) for measure in MEASURES]
        weights = [60.0, 1.0, 30.0, 3.0]
        yield (HiddenObjective if name.startswith("hidden") else Objective)(
            f"objective-{name}",
            "registration_objective",
            objective_inputs_with_nan if name == "nan" else objective_inputs,
            (factors, weights, padding, [0.7, 1.9], penalty, threshold),
            masked,
            needs=(window,),
            asked=tuple((gradient, warped, *window) for gradient, warped in ASKED),
            terms=5,
        )


NEEDS = ((True, True), (True, False), (False, True))


def warp_cases() -> Iterator[Case]:
    everything = (
        (True, False, False),
        (False, True, False),
        (True, True, False),
        (True, True, True),
        (True, False, True),
    )
    for interpolation in ("linear", "nearest", "cubic"):
        for padding in ("border", "zeros", "reflection"):
            options = (interpolation, padding)
            name = f"warp-{interpolation}-{padding}"
            yield Case(name, "warp", moving_and_field, options, needs=everything, tile=(16, 64))


def affine_cases() -> Iterator[Case]:
    """Options are warp's: every one of a displacement, some of a map alone."""
    tile = (16, 64)
    for interpolation in ("linear", "nearest", "cubic"):
        for padding in ("border", "zeros", "reflection"):
            options, name = (interpolation, padding), f"affine-{interpolation}-{padding}"
            inputs = moving_map_and_field
            yield Mapped(name, "affine_warp", inputs, options, needs=NEEDS, tile=tile)
    for name, inputs, options in (
        ("affine-map", moving_and_map, ("linear", "border")),
        ("affine-map-nearest", moving_and_map, ("nearest", "zeros")),
        ("affine-map-cubic", moving_and_map, ("cubic", "reflection")),
        ("affine-one", one_moving_and_map, ("linear", "zeros")),
    ):
        needs = ((True, False),)
        yield Mapped(name, "affine_warp", inputs, options, needs=needs, tile=tile)


def information_cases() -> Iterator[Case]:
    """Few bins and the default, more than shared memory holds, and than a block has threads; small
    axes: a tile is 32 rows."""
    for name, bins, masked, inputs in (
        ("mi", 32, False, images(2)),
        ("mi-mask", 9, True, images(2)),
        ("mi-moving", 8, True, pair_and_moving),
        ("mi-many", 71, True, images(2)),
        ("mi-hidden", 12, True, images(2)),
        ("mi-heavy", 9, True, images(2)),
        ("mi-wide", 300, False, images(2)),
        ("mi-unknown-warped", 9, True, images(2)),
        ("mi-unknown-fixed", 9, True, images(2)),
    ):
        yield Information(
            name, "mutual_information", inputs, (bins,), masked, saved=2, tile=(32, 64)
        )


PACKED = ("gradient_scale", "parallel_level_sets")
PACKS = (7, 120)  # adjacent columns a lane


def cases() -> list[Case]:
    found = [*warp_cases(), *affine_cases(), *objective_cases(), *information_cases()]
    for penalty, threshold in (
        ("hyperelastic", 0.2),
        ("log2", 0.1),
        ("hinge", 0.3),
        ("relu", 0.0),
    ):
        options = ([0.7, 1.9], penalty, threshold)
        found.append(Case(f"energy-{penalty}", "deformation_energy", fields(1.5), options))
    for reduce in ("none", "min", "mean", "bound"):
        name = f"determinant-{reduce}"
        needs = () if reduce == "bound" else ((),)  # it has no gradient
        found.append(Case(name, "jacobian_determinant", fields(3.0), (reduce,), needs=needs))
    floats = Case("pls-floats", "parallel_level_sets", pair_with_one_scale, ("pls",), False, NEEDS)
    found.append(floats)
    for masked in (False, True):
        suffix = "-mask" if masked else ""
        for variant in ("pls", "smooth", "ngf"):
            found.append(
                Case(
                    variant + suffix,
                    "parallel_level_sets",
                    pair_with_scales,
                    (variant,),
                    masked,
                    NEEDS,
                    tile=PACKS,
                )
            )
        found.append(
            Case(
                "scale" + suffix,
                "gradient_scale",
                images(1),
                (1.7,),
                masked,
                tile=PACKS,
            )
        )
        found.append(
            Case(
                "correlation" + suffix,
                "correlation",
                images(2),
                (),
                masked,
                NEEDS,
                saved=1,
                tile=(32, 64),
            )
        )
        for window in (1, 9, 33) if masked else (1, 3, 5, 7, 9, 301):
            found.append(
                Windowed(
                    f"lncc-{window}{suffix}",
                    "local_correlation",
                    images(2),
                    (window,),
                    masked,
                    NEEDS,
                    tile=(16, 120),
                )
            )
    for name, operator, inputs, options, needs in (
        *((v, "parallel_level_sets", pair_with_scales, (v,), NEEDS) for v in ("pls", "ngf")),
        ("scale", "gradient_scale", images(1), (1.7,), ((),)),
        ("correlation", "correlation", images(2), (), NEEDS),
        *((f"lncc-{w}", "local_correlation", images(2), (w,), NEEDS) for w in (1, 9)),
    ):
        saved = int(operator == "correlation")
        tile = {"tile": PACKS} if operator in PACKED else {}
        found.append(
            Hidden(f"{name}-hidden", operator, inputs, options, True, needs, saved, **tile)
        )
        if operator in PACKED:
            beside = operator, inputs, options, True, needs, saved
            found.append(Beside(f"{name}-beside", *beside, **tile))
    return found


def in_volumes(case: Case) -> Case:
    """The same on volumes: their voxels have three lengths."""
    options = tuple([*o, 1.3] if isinstance(o, list) and len(o) == 2 else o for o in case.options)
    return replace(case, name=f"{case.name}-3d", options=options, dimensions=3)


FLAT = {case.name: case for case in cases()}
CASES = FLAT | {f"{name}-3d": in_volumes(case) for name, case in FLAT.items()}
# One case an operator, for what does not depend on the options.
FLAT_PLAIN = (
    "warp-linear-border",
    "affine-linear-border",
    "energy-hyperelastic",
    "determinant-min",
    "pls-mask",
    "scale-mask",
    "correlation-mask",
    "lncc-9-mask",
    "mi-mask",
    "objective-mixture",
)
PLAIN = (*FLAT_PLAIN, *(f"{name}-3d" for name in FLAT_PLAIN))


def beside_16_bytes(argument: Any) -> Any:
    """The same values, where a load of 16 bytes would not be aligned."""
    if not isinstance(argument, torch.Tensor):
        return argument
    moved = argument.new_empty(argument.numel() + 1)[1:].view(argument.shape)
    assert moved.data_ptr() % 16 != 0 and moved.is_contiguous()
    return moved.copy_(argument)


def each_beside_16_bytes(arguments: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The arguments with all tensors so, and with one alone, since the others may tell of it."""
    yield tuple(map(beside_16_bytes, arguments))
    for k, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor) and argument.ndim > 1:
            yield (*arguments[:k], beside_16_bytes(argument), *arguments[k + 1 :])


def with_many_tiles() -> list[tuple[Case, Shape]]:
    """One case of every operator that sums over tiles, with more in a sample than a block has
    threads: the last block takes them in turns."""
    names = [n for n in PLAIN if not n.startswith(("warp", "determinant", "objective"))]
    found = []
    for case in (CASES[name] for name in (*names, "objective-ssd")):
        samples, channels, size = 1, 300, case.size((2, 3), (2, 3, 4))
        if case.operator in ("affine_warp", "deformation_energy"):  # a tile has all channels
            channels, size = 1, case.size((16_700, 2), (2_100, 2, 2))
        if case.operator == "affine_warp":
            samples = 2  # the gradient to the last one's map is NaN
        if case.operator in ("deformation_energy", "local_correlation"):
            case = replace(case, needs=())  # whose gradient sums nothing
        found.append((case, Shape(samples, channels, size)))
    return found


def blank(case: Case) -> Case:
    """The case with a mask that is 0 all over the first sample."""

    class Blank(type(case)):  # type: ignore[misc]
        def mask(self, shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
            (mask,) = super().mask(shape, dtype)
            mask[:1] = 0
            return (mask,)

    return Blank(**vars(case))


MASKED = [name for name in PLAIN if CASES[name].masked]
