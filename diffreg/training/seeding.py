"""Random numbers from a key: a run that goes on draws what it would have drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Those of torch, numpy and random within, from the key; afterwards they are as they were.

    Args:
        key: whole numbers >= 0, such as (seed, step, rank).
        device: whose random numbers of torch are meant, beside the CPU's.

    Example:
        >>> import torch
        >>> from diffreg.training.seeding import seeded
        >>> with seeded(0, 7):
        ...     one = torch.rand(1)
        >>> with seeded(0, 7):
        ...     bool(torch.rand(1) == one)
        True
    """
    word, half = np.random.SeedSequence(key).generate_state(2).tolist()
    kept, kept_numpy = random.getstate(), np.random.get_state()
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which seeds every device there is, and is slow where one is not.
        torch.default_generator.manual_seed(word << 31 ^ half)
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(word << 31 ^ half)
        np.random.seed(word)
        random.seed(word << 32 | half)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)
