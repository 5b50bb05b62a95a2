"""What is measured: the cases of `diffreg bench` and some more, and the kernels that they call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from shapes import IMAGES, SHAPES, VOLUME, device, is_dry, shapes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffreg import ops
from diffreg.benchmark.cases import CASES as OF_THE_BENCHMARK
from diffreg.benchmark.cases import Case, Draw, as_tensors

# Other dtypes, of these alone.
DTYPES = (torch.float16, torch.float64)
IN_OTHER_DTYPES = (
    *("warp", "deformation_energy", "local_correlation"),
    *("registration_objective", "registration_objective_default"),
)


def _ncc(moving: torch.Tensor, fixed: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return ops.registration_objective(moving, fixed, u, "ncc").total


_DEFAULT = OF_THE_BENCHMARK["registration_objective_default"]
CASES = {
    **OF_THE_BENCHMARK,
    "registration_objective_ncc": replace(_DEFAULT, name="registration_objective_ncc", ours=_ncc),
}


def draws() -> Iterator[tuple[Case, Draw]]:
    """What the kernels are measured on, most important first."""
    for shape in shapes(*SHAPES):
        for case in CASES.values():
            yield case, Draw(shape, device=device())
    for shape in shapes(IMAGES, VOLUME):
        for dtype in DTYPES:
            for name in IN_OTHER_DTYPES[: 1 if is_dry() else None]:
                yield CASES[name], Draw(shape, dtype, device())


@dataclass(frozen=True)
class Kernel:
    """A call of one of our operators: it may launch several kernels.

    Args:
        operator: such as "warp_backward".
        call: the operator on what the case gave it.
        moved: the fewest bytes: every tensor that it takes or returns, once.
        key: the same for calls of the same work.
    """

    operator: str
    call: Callable[[], Any]
    moved: int
    key: str


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Kernel] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        if function.namespace == "diffreg":
            tensors = [t for t in tree_leaves((args, kwargs, value)) if _is_real(t)]
            moved = sum({t.data_ptr(): t.nbytes for t in tensors}.values())
            call = functools.partial(function, *args, **(kwargs or {}))
            self.calls.append(Kernel(function._opname, call, moved, _key(function, args)))
        return value


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 0


def _key(function: Any, args: tuple[Any, ...]) -> str:
    meant = (
        (list(a.shape), str(a.dtype)) if isinstance(a, torch.Tensor) else a
        for a in tree_leaves(args)
    )
    return f"{function}{list(meant)}"


def both(case: Case, draw: Draw) -> Callable[[], Any]:
    """The case forward and backward, as its user calls it."""
    inputs = case.inputs(draw)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    upstream = [torch.ones_like(value) for value in as_tensors(case.ours(*inputs))]
    return lambda: torch.autograd.grad(as_tensors(case.ours(*inputs)), wanted, upstream)


def kernels(case: Case, draw: Draw) -> list[Kernel]:
    """What the case calls, first for its value alone, then for value and gradient.

    Raises:
        NotImplementedError: nothing of ours is called: it is plain PyTorch on this device.
    """
    inputs = [tensor.detach() for tensor in case.inputs(draw)]
    run = both(case, draw)
    with torch.autograd.set_multithreading_enabled(False), _Recorder() as record:
        case.ours(*inputs)
        run()
    if not record.calls:
        raise NotImplementedError(f"{case.name} is plain PyTorch on {draw.device}")
    return list({kernel.key: kernel for kernel in record.calls}.values())
