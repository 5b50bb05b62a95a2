"""What the host sends to a GPU for a step, while that computes the step before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

MOST = 4  # forms of what is sent that keep buffers; another one is sent where the steps wait for it


class Uploads:
    """Copies tensors of the host to a GPU, on a stream of its own, for the steps of another stream.

    Each form of what is sent has two sets of buffers, filled by turns: while one step reads its
    set, the next step's is filled. What is returned is overwritten by the second call after it.

    Args:
        device: of the steps.

    Example: `Uploads(torch.device("cuda"))([image.pin_memory()])`
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._queued: Any = None  # event: all that the steps had queued at the last call
        self._sets: dict[Any, list[list[Tensor]]] = {}  # by form; the one to be filled is first

    def __call__(self, given: Any) -> Any:
        """The same in tuples, lists and dicts as they were; the host waits for nothing.

        Args:
            given: whose tensors are contiguous, in pinned memory.
        """
        leaves, form = tree_flatten(given)
        parts = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = tuple((part.shape, part.dtype) for part in parts)
        steps = torch.cuda.current_stream(self.device)
        queued, last = steps.record_event(), self._queued
        self._queued = queued
        if key not in self._sets:
            if len(self._sets) == MOST:
                sent = iter([part.to(self.device, non_blocking=True) for part in parts])
                return _with(leaves, form, sent)
            self._sets[key] = [[_like(part, self.device) for part in parts] for _ in range(2)]
            last = queued  # their memory may be of what a step still uses
        # The step before reads the other set; the one before that has read this one.
        self._stream.wait_event(last)
        sets = self._sets[key]
        with torch.cuda.stream(self._stream):
            for buffer, part in zip(sets[0], parts, strict=True):
                buffer.copy_(part, non_blocking=True)
        steps.wait_stream(self._stream)
        sets.reverse()
        return _with(leaves, form, iter(sets[1]))


def _like(part: Tensor, device: torch.device) -> Tensor:
    return torch.empty(part.shape, dtype=part.dtype, device=device)


def _with(leaves: Any, form: Any, sent: Any) -> Any:
    """What was given, with other tensors."""
    return tree_unflatten(
        [next(sent) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form
    )
