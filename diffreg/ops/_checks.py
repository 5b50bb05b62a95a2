"""Checks of the operators' arguments: errors name the argument, the demand and the finding."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

from diffreg.ops._autograd import has_values, under_gradient_transform
from diffreg.ops._core import HAS_CORE, build_info
from diffreg.ops._self_test import check_once

HALVES = (torch.float16, torch.bfloat16)
FLOATING = (*HALVES, torch.float32, torch.float64)
_CUDA_BUILT = build_info()["cuda_architectures"] != "none"
# Devices whose kernels read and write half types; the CPU's, and plain PyTorch, compute in what
# they are given.
READS_HALVES = ("cuda",) if HAS_CORE else ()
WITHOUT_DOUBLE = ("mps",)
Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_keywords(**ours: str) -> Callable[[Function], Function]:
    """Answers another library's keyword with a TypeError that names ours.

    Args:
        **ours: other library's keyword -> what to say instead.

    Returns:
        A decorator.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs.keys() & ours.keys():
                called = function.__qualname__.removesuffix(".__init__")
                raise TypeError(f"{called}() has no argument '{name}': {ours[name]}")
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_floating(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def arithmetic_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """What an operator computes in: float64 where an input is, else float32 (half types too)."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def widest_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if tensor.device.type in WITHOUT_DOUBLE else torch.float64


def in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`, which takes a microsecond to find that there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def as_handed(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The images or fields of an operator in the dtype that it is handed them in.

    One half type stays as it is where kernels read it, which halves what they move. All else goes
    to the arithmetic's dtype. Scalars and masks always do: rounded to a half type, an edge scale or
    a weight would be another one than on the CPU, or 0, or infinite.
    """
    first = tensors[0]
    dtype = first.dtype
    kept = dtype not in HALVES or first.device.type in READS_HALVES
    if kept and all(tensor.dtype == dtype for tensor in tensors[1:]):
        return tensors
    dtype = arithmetic_dtype(*tensors)
    return tuple(in_dtype(tensor, dtype) for tensor in tensors)


def check_displacement(displacement: Any) -> None:
    """Raises unless it is a float tensor (N, D, *S), D = 2 or 3, that a kernel can read."""
    check_tensor("displacement", displacement)
    shape = displacement.shape
    if len(shape) not in (4, 5) or shape[1] != len(shape) - 2:
        raise ValueError(f"displacement must be (N, 2, H, W) or (N, 3, Z, H, W), got {list(shape)}")
    check_floating("displacement", displacement)
    check_device("displacement", displacement)


def check_image(name: str, image: Any, any_dtype: bool = False) -> None:
    """Raises unless it is an image (N, C, *S), 2-D or 3-D, floating unless `any_dtype`."""
    check_tensor(name, image)
    if image.ndim not in (4, 5):
        raise ValueError(f"{name} must be (N, C, H, W) or (N, C, Z, H, W), got {list(image.shape)}")
    if not any_dtype:
        check_floating(name, image)
    check_device(name, image)


def check_axes(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.ndim != other.ndim:
        raise ValueError(
            f"{name} must have as many axes as {other_name}, {list(other.shape)}, got "
            f"{list(tensor.shape)}"
        )


def check_pair(image: Any, fixed: Any, name: str = "warped") -> None:
    """Raises unless `image` (named `name`) and `fixed` have one shape and device."""
    check_image(name, image)
    check_image("fixed", fixed)
    if image.shape != fixed.shape:
        raise ValueError(
            f"fixed must have the shape of {name}, {list(image.shape)}, got {list(fixed.shape)}"
        )
    check_same_device("fixed", fixed, name, image)


def check_same_device(
    name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor
) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}"
        )


def check_device(name: str, tensor: torch.Tensor) -> None:
    """Raises where no kernel was built for the tensor's device, or where it computes wrongly."""
    if tensor.is_cpu or tensor.is_meta or not HAS_CORE:
        return
    if tensor.is_cuda and _CUDA_BUILT:
        if type(tensor) in (torch.Tensor, torch.nn.Parameter):  # a real one
            check_once(tensor.device)
    else:
        raise NotImplementedError(
            f"{name} is on {tensor.device}, for which this build of diffreg has no kernels: move "
            "it to the CPU, or call the operator's _reference, which is plain PyTorch"
        )


def refuse_gradient(name: str, value: Any) -> None:
    """Of numbers, which are constants: a gradient that never comes is told."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise NotImplementedError(f"there is no gradient to {name}: pass its .detach()")


def as_number(name: str, value: Any) -> float:
    refuse_gradient(name, value)
    try:
        return float(value + 0.0)  # a text is no number
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def checked_mask(mask: Any, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask (N, 1, *S) of the image's grid in the given dtype, or None.

    Raises:
        TypeError, ValueError: it is not a tensor of that shape on that device; or, on the CPU,
            where a look costs no waiting, a weight is negative or NaN.
    """
    if mask is None:
        return None
    check_tensor("mask", mask)
    expected = [image.shape[0], 1, *image.shape[2:]]
    if list(mask.shape) != expected:
        raise ValueError(f"mask must be (N, 1, *S) = {expected}, got {list(mask.shape)}")
    if mask.is_complex():
        raise TypeError(f"mask must be real, got {mask.dtype}")
    if mask.device != image.device:
        raise ValueError(
            f"mask must be on the device of the image, {image.device}, got {mask.device}"
        )
    if has_values(mask):
        _check_weights(mask)
    return in_dtype(mask, dtype)


def _check_weights(mask: torch.Tensor) -> None:
    if mask.dtype in (torch.bool, torch.uint8) or mask.numel() == 0:
        return
    lowest = mask.amin().item()  # NaN where there is one
    if not lowest >= 0:
        raise ValueError(f"mask must hold weights >= 0, got {lowest:g}")


def refuse_transforms(operator: str) -> None:
    """Raises where torch has no gradient of ours: in forward mode it would be 0 in silence."""
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"{operator} has no forward-mode derivative (torch.func.jvp, jacfwd); use reverse mode "
            f"(backward, torch.autograd.grad), or {operator}_reference"
        )
    if under_gradient_transform():
        raise NotImplementedError(
            f"{operator} has no gradient under torch.func.grad, vjp or jacrev; use "
            f"torch.autograd.grad (torch.func.vmap works), or {operator}_reference"
        )
