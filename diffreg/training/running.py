"""What torch and the C library are set to while a run goes on, and its progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from diffreg.system.extras import require
from diffreg.system.memory import kept_memory, peak_memory
from diffreg.training.log import StepLog


@contextmanager
def running(threads: int, device: torch.device) -> Iterator[None]:
    """As long as a run goes on: its threads, its memory kept, the same bits at every run.

    Args:
        threads: of torch; 0 leaves them.
        device: of the run.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with repeatable(), kept_memory() if device.type == "cpu" else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def repeatable() -> Iterator[None]:
    """Within, a GPU's convolutions, and its gradients to what is warped, have one result."""
    cudnn = torch.backends.cudnn
    kept = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = kept


def held_at_most(device: torch.device) -> float:
    """MiB that were held at most so far, where the network is."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory()


@contextmanager
def progress_bar(title: str, steps: int, done: int, shown: bool) -> Iterator[Any]:
    """On stderr; yields a function that is told each entry of the log."""
    tqdm = require("tqdm", "progress bars")
    bar = tqdm.tqdm(
        desc=title,
        total=steps,
        initial=done,
        unit="step",
        disable=not shown,
        mininterval=0.5 if sys.stderr.isatty() else 20,  # few lines in a file
        dynamic_ncols=True,
    )

    def show(entry: StepLog) -> None:
        bar.update()
        bar.set_postfix(_terms(entry), refresh=False)

    with bar:
        yield show


def _terms(entry: StepLog) -> dict[str, str]:
    """The loss terms beside the bar."""
    values = {
        "total": entry.total,
        "similarity": entry.similarity,
        "E1": entry.diffusion,
        "E2": entry.bending,
        "Edet": entry.determinant,
        "min J": entry.smallest_determinant,
    }
    return {name: f"{value:.3g}" for name, value in values.items()}
