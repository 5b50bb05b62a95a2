"""What noise cannot touch: operators called, and bytes allocated for what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counts(NamedTuple):
    """Of one run.

    `operators` in the order of their calls, such as "diffreg.warp.default"; `allocated` bytes of
    storage that they returned and did not get. What an operator gives back before it returns is not
    seen, of torch's as of ours: `registration_objective` holds the warped image and the gradient to
    it, 8 bytes a voxel and channel in float32; the other CPU kernels some rows a thread.
    """

    operators: list[str]
    allocated: int


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.allocated = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        made = _storages(value) - given
        if made or not given:  # not a view
            self.operators.append(str(function))
        self.allocated += sum(size for _, size in made)
        return value


def _storages(value: object) -> set[tuple[int, int]]:
    """Address and bytes of every tensor's; autograd's own zeros have none."""
    tensors = [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
    storages = [t.untyped_storage() for t in tensors if not t._is_zerotensor()]
    return {(storage.data_ptr(), storage.nbytes()) for storage in storages}


def counted(run: Callable[[], object]) -> Counts:
    """Counts a run; what it makes only once, such as an identity grid, must be there already.

    Example:
        >>> import torch
        >>> from diffreg.benchmark.counting import counted
        >>> x = torch.ones(4)
        >>> counted(lambda: (x + x).square())
        Counts(operators=['aten.add.Tensor', 'aten.pow.Tensor_Scalar'], allocated=32)
    """
    with _Record() as record:
        run()
    return Counts(record.operators, record.allocated)
