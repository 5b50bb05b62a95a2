"""This process among those that torchrun or a Slurm array started for one command."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rank:
    """One process of several; by default one alone.

    Args:
        number: from 0.
        count: how many there are.
        local: the number among those of this machine.
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this rank says what all would."""
        return self.number == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def takes(self, job: int) -> bool:
        """Whether a job, numbered from 1, is this rank's: every count-th one is.

        Example:
            >>> from diffreg.system.ranks import Rank
            >>> [job for job in range(1, 8) if Rank(1, 3).takes(job)]
            [2, 5]
        """
        return (job - 1) % self.count == self.number

    def said(self, line: str) -> str:
        """A line with who says it, where there are several."""
        return line if self.alone else f"rank {self.number} of {self.count}: {line}"


ALONE = Rank()


def this_rank() -> Rank:
    """This process's rank, from RANK, WORLD_SIZE and LOCAL_RANK; one alone where they are not set.

    Raises:
        ValueError: one of them is no number, or out of range; or there are several processes, and
            RANK does not say which this is.

    Example:
        >>> from diffreg.system.ranks import this_rank
        >>> this_rank()
        Rank(number=0, count=1, local=0)
    """
    count = _whole("WORLD_SIZE", "1", "above 0", range(1, sys.maxsize))
    usual = "0" if count == 1 else ""  # one of several has to say which it is
    number = _whole("RANK", usual, f"below WORLD_SIZE, {count}", range(count))
    return Rank(number, count, _whole("LOCAL_RANK", "0", "", range(sys.maxsize)))


def cuda_device(rank: Rank) -> torch.device:
    """The GPU that a rank computes on: those of one machine take them in turn.

    Args:
        rank: where there are more of them on a machine than GPUs, some share one.

    Example: `cuda_device(this_rank())`
    """
    import torch  # --help waits for no torch

    return torch.device("cuda", rank.local % max(torch.cuda.device_count(), 1))


def _whole(name: str, usual: str, words: str, possible: range) -> int:
    """A number of the environment."""
    text = os.environ.get(name) or usual
    if not text.isdecimal() or int(text) not in possible:
        raise ValueError(f"{name} must be a whole number {words}".rstrip() + f", got {text!r}")
    return int(text)
