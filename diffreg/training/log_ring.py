"""What steps leave for the log, kept where they compute until several are read at once."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from diffreg.training.log import StepLog

TERMS = 9  # of `measure`: what a row of a step begins with
READ_EVERY = 25  # steps on a GPU: for what is read the host has to wait


class Row(NamedTuple):
    """What a step leaves for the log: of all ranks, on the host."""

    terms: list[float]
    folded_percent: float
    smallest_determinant: float
    gradient_norm: float
    stopped: bool

    @staticmethod
    def read(values: Tensor) -> Row:
        """Of a row (TERMS + 4,), wherever it is; in that of a step folds are a share of 1."""
        numbers = values.tolist()
        folded, smallest, norm, stopped = numbers[TERMS:]
        return Row(numbers[:TERMS], 100 * folded, smallest, norm, stopped > 0)


class _Taken(NamedTuple):
    step: int
    epoch: int
    rate: float


class LogRing:
    """Rows of steps on the device, and what the host knows of them.

    Args:
        batch_size: pairs a step.
        device: of the steps. On a CPU, where nothing is waited for, each row is read at once.

    Example:
        >>> import torch
        >>> from diffreg.training.log_ring import LogRing
        >>> ring = LogRing(8, torch.device("cpu"))
        >>> ring.begin()
        >>> ring.keep(torch.zeros(13), step=1, epoch=0, rate=1e-3)
        >>> [entry.step for entry, stopped in ring.read(peak_memory=100.0)]
        [1]
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size
        rows = READ_EVERY if device.type == "cuda" else 1
        self.rows = torch.zeros(rows, TERMS + 4, dtype=torch.float32, device=device)
        self.taken: list[_Taken] = []

    @property
    def full(self) -> bool:
        """Whether it has to be read before the next step."""
        return len(self.taken) == len(self.rows)

    def begin(self) -> None:
        """A step begins; the pace is that from the first after a reading."""
        if not self.taken:
            self._start = time.perf_counter()

    def keep(self, row: Tensor, step: int, epoch: int, rate: float) -> None:
        """What a step left, and its number, from 1 on; nothing waits for it."""
        self.rows[len(self.taken)].copy_(row, non_blocking=True)
        self.taken.append(_Taken(step, epoch, rate))

    def read(self, peak_memory: float) -> list[tuple[StepLog, bool]]:
        """A line of the log for each step that is kept, and whether the run stopped at it."""
        taken, self.taken = self.taken, []
        rows = [Row.read(row) for row in self.rows[: len(taken)].cpu()]
        pace = self.batch_size * len(taken) / (time.perf_counter() - self._start)
        return [
            (_entry(known, row, pace, peak_memory), row.stopped)
            for known, row in zip(taken, rows, strict=True)
        ]


def _entry(known: _Taken, row: Row, pace: float, peak_memory: float) -> StepLog:
    (total, similarity, diffusion, bending, determinant), extra = row.terms[:5], row.terms[5:]
    how = row.smallest_determinant, row.folded_percent, row.gradient_norm, known.rate
    return StepLog(
        *(known.step, known.epoch, total, similarity, diffusion, bending, determinant),
        *(*how, pace, peak_memory, *extra),
    )
