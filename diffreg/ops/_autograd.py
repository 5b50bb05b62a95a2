"""Autograd of the registered operators: for torch's dispatcher, and a short way for eager calls.

What torch.library.register_autograd makes of two Python functions is what torch.compile, vmap,
torch.jit.trace and opcheck need, and costs some 50 microseconds a call, more than a small image
does. An eager call takes an autograd.Function of the same two functions straight to the kernel.
"""

from collections.abc import Callable
from typing import Any

import torch

# Private, and so may go: then every call takes the long way.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
_transforms = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
_batched = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", None)
_tracing = getattr(torch._C, "_get_tracing_state", None)


def may_be_batched(tensor: torch.Tensor) -> bool:
    """Whether vmap, of a vectorized Jacobian too, may have made it: no plain tensor takes it."""
    if _transforms is None or _batched is None:
        return True
    return bool(_transforms()) or _batched(tensor)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device, and are those of the run.

    Not those of a GPU, under vmap, or where torch traces or compiles.
    """
    if not tensor.is_cpu or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    if torch.compiler.is_compiling() or may_be_batched(tensor):
        return False
    return _tracing is not None and not _tracing()


def differentiable(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """Registers the gradient of torch.ops.diffreg.<name>, and gives the operator as a function.

    Args:
        name: of the operator.
        backward, setup_context: as torch.library.register_autograd takes them.

    Returns:
        What takes all of the operator's arguments, in order, and has the same value and gradient.
    """
    torch.library.register_autograd(f"diffreg::{name}", backward, setup_context=setup_context)
    operator = getattr(torch.ops.diffreg, name).default
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
        if torch.is_grad_enabled():
            for argument in arguments:
                if isinstance(argument, torch.Tensor) and argument.requires_grad:
                    return function.apply(*arguments)
        return kernel(*arguments)

    return call
