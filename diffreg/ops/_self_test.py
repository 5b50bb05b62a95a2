"""Once per GPU and process: every kernel against the CPU on a small case, before it is trusted."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from diffreg.ops._autograd import in_words

_passed: set[int] = set()

# Largest difference of a result, of its largest value: a half type is rounded to once.
_ALLOWED = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-4 + 2**-11,
    torch.bfloat16: 1e-4 + 2**-8,
}


def check_once(device: torch.device) -> None:
    """Compares all kernels on a GPU with the CPU, the first time that the GPU is used.

    Not while torch.compile traces nor while a graph is captured, which must not wait for results.

    Raises:
        RuntimeError: a kernel gives something else than the CPU, or does not run on this GPU.
        OutOfMemoryError: the GPU has no memory left for a small case.
    """
    if device.index in _passed:
        return
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    if index in _passed:
        return
    # In a thread of its own torch knows nothing of the caller's state: under vmap no number may be
    # drawn, a default device is another one than the CPU, and what a trace sees it keeps.
    with ThreadPoolExecutor(1) as apart:
        where = torch.device("cuda", index), torch.ops.diffreg, architecture(index)
        apart.submit(compare, *where).result()
    _passed.add(index)


def architecture(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"


def compare(device: torch.device, ops: Any, where: str) -> None:
    """Runs every operator of `ops` on the device and torch.ops.diffreg on the CPU, every dtype.

    Raises:
        RuntimeError: naming the operator and `where`.
    """
    for storage in _ALLOWED:
        arithmetic = torch.float64 if storage == torch.float64 else torch.float32
        for name, arguments in _calls(storage, arithmetic):
            there = tuple(
                a.to(device, copy=True) if isinstance(a, torch.Tensor) else a for a in arguments
            )
            wide = tuple(a.to(arithmetic) if _is_half(a) else a for a in arguments)
            expected = _results(getattr(torch.ops.diffreg, name), wide)
            try:
                found = _results(getattr(ops, name), there)
            except RuntimeError as error:
                told = in_words(error)
                if isinstance(told, torch.OutOfMemoryError):  # of the caller's own tensors
                    raise told from None
                raise RuntimeError(
                    f"diffreg's {name} kernel does not run on {where}: {told}. The core was built "
                    "for other architectures, or the driver is too old; build it with this "
                    "machine's nvcc"
                ) from None
            _check_close(name, where, found, expected, arithmetic)


def _check_close(
    name: str,
    where: str,
    found: tuple[torch.Tensor, ...],
    expected: tuple[torch.Tensor, ...],
    arithmetic: torch.dtype,
) -> None:
    """Doubles that come out of an arithmetic in float32 are as exact as that."""
    for own, other in zip(found, expected, strict=True):
        if own.shape == other.shape and own.numel() == 0:  # what was not asked for
            continue
        apart = (own.cpu() - other).abs().max().item()
        allowed = max(_ALLOWED.get(own.dtype, 0.0), _ALLOWED[arithmetic])
        if not apart <= allowed * other.abs().max().item():
            raise RuntimeError(
                f"diffreg's {name} kernel computes wrongly on {where} ({own.dtype}): {apart:.1e} "
                "apart from the CPU. Please report it; until then, work on the CPU"
            )


def _is_half(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dtype in (torch.float16, torch.bfloat16)


def _results(operator: Any, arguments: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    """What an operator gives, or what it changes in place."""
    value = operator(*arguments)
    return _as_tuple(arguments[0] if value is None else value)


def _as_tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)


def _uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float32)


Calls = Iterator[tuple[str, tuple[Any, ...]]]


def _calls(storage: torch.dtype, arithmetic: torch.dtype) -> Calls:
    """Each operator and its backward operator, on images and volumes a bit larger than a tile.

    Rows are made of whole loads of 16 bytes, or not. Every kernel that is compiled is run.
    """
    columns = 512 // storage.itemsize
    for size in ((27, columns + 8), (5, columns + 3), (3, 9, 136), (2, 3, 35)):
        moving, fixed = (_uniform(1, 1, *size, seed=k).to(storage) for k in range(2))
        mask = _uniform(1, 1, *size, seed=2).to(arithmetic)
        u = (2 * _uniform(1, len(size), *size, seed=3) - 1).to(storage)
        yield from _warps(moving, fixed, u)
        yield from _of_field(u, arithmetic)
        for options in ((mask, 9, 32), (None, 11, 71)):  # other kernels: see csrc
            yield from _measures(moving, fixed, arithmetic, *options)
        yield from _objectives(moving, fixed, u, mask)
    for size in ((5, columns + 3), (2, 3, 35)):
        yield from _copies(size, storage)


def _map(dimensions: int) -> torch.Tensor:
    """Of few digits: points are as exact as a displacement's."""
    matrix = torch.eye(dimensions, dimensions + 1, dtype=torch.float64)
    return (matrix + matrix.roll(1, 1) / 4).unsqueeze(0)


def _warps(moving: torch.Tensor, fixed: torch.Tensor, u: torch.Tensor) -> Calls:
    size, both = moving.shape[2:], (True, True)
    matrix = _map(len(size))
    for interpolation, padding in (
        ("linear", "border"),
        ("linear", "zeros"),
        ("linear", "reflection"),
        ("cubic", "border"),
        ("nearest", "zeros"),
    ):
        yield "warp", (moving, u, interpolation, padding)
        for deterministic in (False, True):
            options = (interpolation, padding, *both, deterministic)
            yield "warp_backward", (fixed, moving, u, *options)
        yield "affine_warp_backward", (fixed, moving, matrix, u, [], interpolation, padding, *both)
        for field, asked in ((u, []), (None, list(size))):
            yield "affine_warp", (moving, matrix, field, asked, interpolation, padding)


def _copies(size: tuple[int, ...], storage: torch.dtype) -> Calls:
    """Of labels, whose voxels have as many bytes as there are kernels for."""
    u = (2 * _uniform(1, len(size), *size, seed=3) - 1).to(storage)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64, torch.complex128):
        labels = (100 * _uniform(1, 1, *size)).to(dtype)
        yield "warp", (labels, u, "nearest", "border")
        yield "affine_warp", (labels, _map(len(size)), u, [], "nearest", "border")


def _of_field(u: torch.Tensor, arithmetic: torch.dtype) -> Calls:
    one = torch.ones(1, dtype=arithmetic)
    energy = _energy(u)
    yield "deformation_energy", energy
    yield "deformation_energy_backward", (one, one, one, *energy)
    for reduce in ("none", "min", "bound"):
        yield "jacobian_determinant", (u, reduce)
    dimensions, *size = u.shape[1:]
    cells = [n - 1 for n in size]
    for reduce, corners in (("none", [2**dimensions]), ("min", [])):
        gradient = _uniform(1, *corners, *cells, seed=4).to(arithmetic)
        yield "jacobian_determinant_backward", (gradient, u, reduce)


def _energy(u: torch.Tensor) -> tuple[Any, ...]:
    return (0.4 * u, [1.0, 1.5, 0.7][: u.shape[1]], "hyperelastic", 0.2)


def _measures(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    arithmetic: torch.dtype,
    mask: torch.Tensor | None,
    window: int,
    bins: int,
) -> Calls:
    one, scale = torch.ones(1, dtype=arithmetic), torch.full((1,), 0.2, dtype=arithmetic)
    both = (True, True)
    yield "gradient_scale", (moving, 1.0, mask)
    yield "gradient_scale_backward", (one, moving, 1.0, mask)
    pair = moving.to(arithmetic), fixed.to(arithmetic)
    _, moments = torch.ops.diffreg.correlation(*pair, mask)
    yield "correlation", (moving, fixed, mask)
    yield "correlation_backward", (one, moments, moving, fixed, mask, *both)
    _, counts, ranges = torch.ops.diffreg.mutual_information(*pair, bins, mask, None)
    yield "mutual_information", (moving, fixed, bins, mask, None)
    yield "mutual_information_backward", (one, counts, ranges, moving, fixed, bins, mask, None)
    level_sets = (moving, fixed, scale, scale, "pls", mask)
    yield "parallel_level_sets", level_sets
    yield "parallel_level_sets_backward", (one, *level_sets, *both)
    yield "local_correlation", (moving, fixed, window, mask)
    yield "local_correlation_backward", (one, moving, fixed, window, mask, *both)


def _objectives(
    moving: torch.Tensor, fixed: torch.Tensor, u: torch.Tensor, mask: torch.Tensor
) -> Calls:
    one, scale = torch.ones(1, dtype=mask.dtype), torch.full((1,), 0.2, dtype=mask.dtype)
    u, *energy = _energy(u)
    factors = [0.5, 1.0, 0.2, 0.5, 0.5, 0.5], [6.0, 1.0, 3.0, 0.3]
    for padding in ("border", "zeros", "reflection"):
        for weights in (None, mask):  # other kernels
            objective = (moving, fixed, u, scale, scale, weights, *factors, padding, *energy)
            yield "registration_objective", (*objective, True, True)
    yield "registration_objective", (*objective, False, False)
    yield "registration_objective_backward", (*5 * [one], *objective)
    yield "registration_objective_scale", (mask.clone(), scale)
