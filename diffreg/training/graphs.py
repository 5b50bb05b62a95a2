"""A step on a GPU as CUDA graphs, one for each shape of its batch: the kernels without Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        self._stream: Any = None  # of eager calls: memory belongs to the stream that asked for it
        self.forget()

    def forget(self) -> None:
        """Capture anew: the graphs hold tensors that the step no longer has."""
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, _Graph] = {}
        # The graphs share one: one is replayed after the other. It ends with the last of them.
        self._pool: Any = None

    def __call__(self, given: Any) -> Tensor:
        if not self.replays:
            return self.step(given)
        key = _key(given)
        if key in self._graphs:
            return self._graphs[key](given)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls < EAGER_STEPS or len(self._graphs) == MOST:
            return self._aside(given)
        if calls == EAGER_STEPS:
            with waits() as seen:
                found = self._aside(given)
            self._check(seen)
            return found
        self._capture(key, given)
        return self._graphs[key](given) if self.replays else self._aside(given)

    def _aside(self, given: Any) -> Tensor:
        """On another stream, as what is captured later has to be."""
        self._stream = self._stream or torch.cuda.Stream()
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        try:
            with torch.cuda.stream(self._stream):
                return self.step(given)
        finally:
            usual.wait_stream(self._stream)  # what was queued before an error, too

    def _check(self, waits: Sequence[str]) -> None:
        """A step that waits for the device cannot be captured; a try would leave a torn graph."""
        if waits:
            self._give_up(waits[0])

    def _capture(self, key: Any, given: Any) -> None:
        try:
            self._pool = self._pool or new_pool()
            self._graphs[key] = _Graph(self.step, given, self._pool)
        except RuntimeError as error:
            self._give_up(str(error.__context__ or error))

    def _give_up(self, reason: str) -> None:
        line = reason.strip().partition("\n")[0]
        self.say(f"a training step cannot be a CUDA graph, and runs without one: {line}")
        self.replays = False
        self._graphs.clear()


class _Graph:
    """A captured call, the tensors that it reads and the one that it leaves."""

    def __init__(self, step: Callable[[Any], Tensor], given: Any, pool: Any) -> None:
        leaves, form = tree_flatten(given)
        held = [part.clone() if isinstance(part, Tensor) else part for part in leaves]
        self.held = [part for part in held if isinstance(part, Tensor)]
        self.replay, self.left = captured(lambda: step(tree_unflatten(held, form)), pool)

    def __call__(self, given: Any) -> Tensor:
        for kept, part in zip(self.held, _tensors(given), strict=True):
            kept.copy_(part, non_blocking=True)
        self.replay()
        return self.left


def captured(function: Callable[[], Tensor], pool: Any) -> tuple[Callable[[], None], Tensor]:
    """What runs the kernels of a function again, and the tensor that they leave; not yet run."""
    graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads, such as one that pins memory, are let alone.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            left = function()
    finally:
        torch.cuda.set_stream(usual)  # which torch does not after a failure
    return graph.replay, left


def new_pool() -> Any:
    """Memory for graphs."""
    return torch.cuda.graph_pool_handle()


@contextmanager
def waits() -> Iterator[list[str]]:
    """What torch says, within, of operations for which the host waits; other warnings go on."""
    said: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _set_sync_debug_mode("warn")
        try:
            yield said
        finally:
            _set_sync_debug_mode(before)
    for warning in caught:
        if "synchronizing" in str(warning.message):
            said.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        # The first call in a process says that the mode does not detect all "synchronizing
        # operations" yet, which is no wait.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def _tensors(given: Any) -> list[Tensor]:
    return [part for part in tree_flatten(given)[0] if isinstance(part, Tensor)]


def _key(given: Any) -> Any:
    """What two calls have in common that one graph can take."""
    leaves, form = tree_flatten(given)
    shapes = (
        (part.shape, part.dtype) if isinstance(part, Tensor) else type(part) for part in leaves
    )
    return str(form), tuple(shapes)
