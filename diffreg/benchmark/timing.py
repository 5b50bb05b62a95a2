"""Interleaved timing: all candidates by turns in one process, so that noise meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Run = Callable[[], object]


class Time(NamedTuple):
    """Seconds of one run: the median, and the spread of the middle half in parts of it."""

    median: float
    spread: float


def interleaved(
    runs: Mapping[str, Run], device: str, seconds: float, turn: float = 1e-3
) -> dict[str, Time]:
    """Times every run by turns.

    Args:
        runs: name -> function without arguments; one with an attribute `calls` is so many in one.
        device: "cpu", timed on one thread by that thread's own clock, which other processes do not
            disturb, and on several by the wall's; or "cuda", which is timed by events.
        seconds: about how long all of it may take; there are 5 rounds at least, after one that does
            not count.
        turn: seconds that a run's turn lasts at least: shorter ones are repeated in it.

    Returns:
        name -> time.
    """
    clock = _device_clock if device == "cuda" else _cpu_clock
    first = {name: clock(run, 1) for name, run in runs.items() for _ in range(2)}
    repeats = {name: max(1, round(turn / max(t, 1e-6))) for name, t in first.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while len(next(iter(samples.values()))) < 5 or time.perf_counter() < end:
        for name, run in runs.items():
            samples[name].append(clock(run, repeats[name]))
    return {name: _summary(found) for name, found in samples.items()}


def _summary(samples: list[float]) -> Time:
    low, median, high = statistics.quantiles(samples, n=4)
    return Time(median, (high - low) / median)


def _cpu_clock(run: Run, repeats: int) -> float:
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = now()
    for _ in range(repeats):
        run()
    return (now() - begin) / repeats / getattr(run, "calls", 1)


def _device_clock(run: Run, repeats: int) -> float:
    calls = getattr(run, "calls", 1)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats / calls


class Graph:
    """Several runs, one after the other, as a CUDA graph: what kernels take, without Python.

    A graph of one kernel, replayed over and over, would take as long as a launch.

    Args:
        run: what is captured.
        calls: how many of it.

    Raises:
        RuntimeError: it cannot be captured.
    """

    def __init__(self, run: Run, calls: int = 16) -> None:
        self.calls = calls
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries make their choices and take their memory
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(calls):
                run()

    def __call__(self) -> None:
        self._graph.replay()


def yardstick(moved: int, device: str) -> Run:
    """What moves so many bytes and does nothing else: x + 1 in a graph, on a CPU a copy.

    On a GPU a copy is the slower one.
    """
    page = torch.rand(max(1, moved // 8), device=device)
    into = torch.empty_like(page)
    if device == "cuda":
        return Graph(lambda: torch.add(page, 1, out=into))
    return lambda: into.copy_(page)
