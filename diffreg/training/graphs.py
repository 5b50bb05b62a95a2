"""A step on a GPU as CUDA graphs, one for each shape of its batch: the kernels without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffreg.data.known import Known
from diffreg.data.pairs import Batch

EAGER_STEPS = 3  # of each shape, before it is captured: libraries make themselves ready in them
MOST = 4  # shapes that have a graph, which keeps the memory of a step; others are run eagerly


class Replayed:
    """A function of a batch that returns a tensor, replayed on a GPU after its first calls.

    Its bits are those of the function itself: the same kernels in the same order. What it returns
    is overwritten by the next call.

    Args:
        step: what is called: tensors of the batch -> a tensor, all on the device, with no wait for
            the host in it.
        device: of all of it; other than a GPU, the function is called as it is.
        say: told in one line where a step cannot be captured; all are then run as they are.
    """

    def __init__(
        self, step: Callable[[Batch], Tensor], device: torch.device, say: Callable[[str], None]
    ) -> None:
        self.step, self.say = step, say
        self.replays = device.type == "cuda"
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, batch: Batch) -> Tensor:
        if not self.replays:
            return self.step(batch)
        key = _key(batch)
        if key not in self._graphs:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls <= EAGER_STEPS or len(self._graphs) == MOST or not self._capture(key, batch):
                return self._aside(batch)
        return self._graphs[key](batch)

    def _aside(self, batch: Batch) -> Tensor:
        """On another stream, as what is captured later has to be."""
        stream, usual = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(usual)
        with torch.cuda.stream(stream):
            found = self.step(batch)
        usual.wait_stream(stream)
        return found

    def _capture(self, key: Any, batch: Batch) -> bool:
        try:
            self._graphs[key] = _Graph(self.step, batch)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            self.say(f"a training step cannot be a CUDA graph, and runs without one: {reason}")
            self.replays = False
        return self.replays


class _Graph:
    """A captured call, the batch that it reads and the tensor that it leaves."""

    def __init__(self, step: Callable[[Batch], Tensor], batch: Batch) -> None:
        self.held = [part.clone() for part in _tensors(batch)]
        copies = iter(self.held)
        whole = _mapped(batch, lambda _: next(copies))
        self.replay, self.left = captured(lambda: step(whole))

    def __call__(self, batch: Batch) -> Tensor:
        for kept, given in zip(self.held, _tensors(batch), strict=True):
            kept.copy_(given, non_blocking=True)
        self.replay()
        return self.left


def captured(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What runs the kernels of a function again, and the tensor that they leave; not yet run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        left = function()
    return graph.replay, left


def _parts(batch: Batch) -> tuple[Tensor | None, ...]:
    return (batch.moving, batch.fixed, batch.mask, *batch.known)


def _tensors(batch: Batch) -> list[Tensor]:
    return [part for part in _parts(batch) if part is not None]


def _mapped(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    moving, fixed, mask, *known = (
        None if part is None else function(part) for part in _parts(batch)
    )
    assert moving is not None and fixed is not None
    return Batch(moving, fixed, mask, batch.names, Known(*known))


def _key(batch: Batch) -> Any:
    """What two batches have in common that one graph can take."""
    return tuple(None if part is None else (part.shape, part.dtype) for part in _parts(batch))
