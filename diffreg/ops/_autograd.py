"""Autograd of the registered operators: for torch's dispatcher, and a short way for eager calls.

What torch.library.register_autograd makes of two Python functions is what torch.compile, vmap,
torch.jit.trace and opcheck need, and costs some 50 microseconds a call, more than a small image
does. An eager call takes an autograd.Function of the same two functions straight to the kernel.
"""

from collections.abc import Callable
from typing import Any

import torch

from diffreg.ops._core import what_torch_said

# Private, and so may go: then every call takes the long way.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
_transforms = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
_batched = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", None)
_mapped = getattr(getattr(torch._C, "_functorch", None), "is_batchedtensor", None)
_unwrapped = getattr(getattr(torch._C, "_functorch", None), "get_unwrapped", None)
_tracing = getattr(torch._C, "_get_tracing_state", None)
_stack = getattr(getattr(torch._C, "_functorch", None), "get_interpreter_stack", None)


def may_be_batched(tensor: torch.Tensor) -> bool:
    """Whether vmap, of a vectorized Jacobian too, may have made it: no plain tensor takes it."""
    if _transforms is None or _batched is None:
        return True
    return bool(_transforms()) or _batched(tensor)


def needs_gradient(tensor: torch.Tensor) -> bool:
    """Whether autograd follows it, which one that vmap made does not say of what it holds."""
    if not torch.is_grad_enabled():
        return False
    if _mapped is not None and _unwrapped is not None and not torch.compiler.is_compiling():
        while _mapped(tensor):
            tensor = _unwrapped(tensor)
    return bool(tensor.requires_grad)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device, and are those of the run.

    Not those of a GPU, under vmap, or where torch traces or compiles.
    """
    if not tensor.is_cpu or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    if torch.compiler.is_compiling() or may_be_batched(tensor):
        return False
    return _tracing is not None and not _tracing()


def under_gradient_transform() -> bool:
    """Whether torch.func.grad, vjp or jacrev is at work, which torch.library does not know."""
    if torch.compiler.is_compiling() or _transforms is None or _stack is None:
        return False
    if not _transforms():
        return False
    return any("Grad" in str(level.key()) for level in _stack() or ())


def _register_vmap(name: str, operator: Any) -> None:
    """torch.func.vmap of an operator: the mapped axis becomes a part of the batch axis N.

    All tensors that an operator takes or gives have N first, but for a gradient that nobody asked
    for, which is (0,).
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def folded(argument: Any, dim: Any) -> Any:
            if not isinstance(argument, torch.Tensor):
                return argument
            mapped = argument.expand(size, *argument.shape) if dim is None else argument
            return mapped.movedim(0 if dim is None else dim, 0).flatten(0, 1)

        pairs = list(zip(arguments, in_dims, strict=True))
        first, dim = next(pair for pair in pairs if isinstance(pair[0], torch.Tensor))
        samples = first.shape[1 if dim == 0 else 0]
        together = [folded(argument, dim) for argument, dim in pairs]

        def unfolded(output: torch.Tensor) -> tuple[torch.Tensor, int | None]:
            if output.shape[0] != size * samples:
                return output, None
            return output.unflatten(0, (size, samples)), 0

        found = operator(*together)
        if isinstance(found, torch.Tensor):
            return unfolded(found)
        outputs, out_dims = zip(*map(unfolded, found), strict=True)
        return outputs, out_dims

    torch.library.register_vmap(f"diffreg::{name}", rule)


def in_words(error: RuntimeError) -> RuntimeError:
    """An operator's error; where torch refused what the operator asked of it, torch's own.

    Memory, above all: torch's stable ABI tells an operator no more than that a call failed.
    """
    if "API call failed" not in str(error):
        return error
    said = what_torch_said() or f"out of memory, or what torch has printed: {error}"
    return (torch.OutOfMemoryError if "CUDA out of memory" in said else RuntimeError)(said)


def differentiable(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """Registers gradient and vmap of torch.ops.diffreg.<name>, and gives it as a function.

    Args:
        name: of the operator.
        backward, setup_context: as torch.library.register_autograd takes them.

    Returns:
        What takes all of the operator's arguments, in order, and has the same value and gradient.
    """
    torch.library.register_autograd(f"diffreg::{name}", backward, setup_context=setup_context)
    operator = getattr(torch.ops.diffreg, name).default
    _register_vmap(name, operator)
    if _below_autograd is None or _transforms is None or _tracing is None:
        return operator
    below_autograd, transforms, tracing = _below_autograd, _transforms, _tracing

    def kernel(*arguments: Any) -> Any:
        with below_autograd():
            return operator(*arguments)

    def forward(ctx: Any, *arguments: Any) -> Any:  # with the context: torch is slow without
        output = kernel(*arguments)
        setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    title = "".join(word.title() for word in name.split("_"))
    function: Any = type(title, (torch.autograd.Function,), members)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or transforms() or tracing():
            return operator(*arguments)
        try:
            if torch.is_grad_enabled():
                for argument in arguments:
                    if isinstance(argument, torch.Tensor) and argument.requires_grad:
                        return function.apply(*arguments)
            return kernel(*arguments)
        except RuntimeError as error:
            raise in_words(error) from error.__cause__

    return call
