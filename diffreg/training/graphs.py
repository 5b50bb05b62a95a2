"""A step on a GPU as CUDA graphs, one for each shape of its batch: the kernels without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

EAGER_STEPS = 3  # of each shape, before it is captured: libraries make themselves ready in them
MOST = 4  # shapes that have a graph, which keeps the memory of a step; others are run eagerly


class Replayed:
    """A function of tensors in tuples, which returns a tensor, replayed on a GPU after some calls.

    Its bits are those of the function itself: the same kernels in the same order. What it returns
    is overwritten by the next call.

    Args:
        step: what is called, on tensors of the device, with no wait for the host in it. What else
            is in the tuples is for a graph what it was when that was captured.
        replays: whether it is replayed; else the function is called as it is.
        say: told in one line where a step cannot be captured; all are then run as they are.
    """

    def __init__(
        self, step: Callable[[Any], Tensor], replays: bool, say: Callable[[str], None]
    ) -> None:
        self.step, self.replays, self.say = step, replays, say
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, given: Any) -> Tensor:
        if not self.replays:
            return self.step(given)
        key = _key(given)
        if key not in self._graphs:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls <= EAGER_STEPS or len(self._graphs) == MOST or not self._capture(key, given):
                return self._aside(given)
        return self._graphs[key](given)

    def _aside(self, given: Any) -> Tensor:
        """On another stream, as what is captured later has to be."""
        stream, usual = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(usual)
        with torch.cuda.stream(stream):
            found = self.step(given)
        usual.wait_stream(stream)
        return found

    def _capture(self, key: Any, given: Any) -> bool:
        try:
            self._graphs[key] = _Graph(self.step, given)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            self.say(f"a training step cannot be a CUDA graph, and runs without one: {reason}")
            self.replays = False
        return self.replays


class _Graph:
    """A captured call, the tensors that it reads and the one that it leaves."""

    def __init__(self, step: Callable[[Any], Tensor], given: Any) -> None:
        leaves, form = tree_flatten(given)
        held = [part.clone() if isinstance(part, Tensor) else part for part in leaves]
        self.held = [part for part in held if isinstance(part, Tensor)]
        self.replay, self.left = captured(lambda: step(tree_unflatten(held, form)))

    def __call__(self, given: Any) -> Tensor:
        for kept, part in zip(self.held, _tensors(given), strict=True):
            kept.copy_(part, non_blocking=True)
        self.replay()
        return self.left


def captured(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What runs the kernels of a function again, and the tensor that they leave; not yet run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        left = function()
    return graph.replay, left


def _tensors(given: Any) -> list[Tensor]:
    return [part for part in tree_flatten(given)[0] if isinstance(part, Tensor)]


def _key(given: Any) -> Any:
    """What two calls have in common that one graph can take."""
    leaves, form = tree_flatten(given)
    shapes = (
        (part.shape, part.dtype) if isinstance(part, Tensor) else type(part) for part in leaves
    )
    return str(form), tuple(shapes)
