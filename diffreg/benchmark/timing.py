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
        runs: name -> function without arguments.
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
    return (now() - begin) / repeats


def _device_clock(run: Run, repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def in_a_graph(run: Run) -> Run:
    """The run as a CUDA graph: what its kernels take, without Python.

    Raises:
        RuntimeError: it cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
