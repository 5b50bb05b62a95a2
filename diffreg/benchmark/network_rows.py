"""Which training steps and predictions are measured, on how many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from diffreg.benchmark.network import training_step
from diffreg.benchmark.prediction import file_to_file, prediction
from diffreg.benchmark.rows import Row

Note = Callable[[str], None]


def training_rows(quick: bool, device: str, note: Note) -> Iterator[Row]:
    """Batches of images on all threads, one of them on one thread too, and a volume."""
    sizes = ((128, 8),) if quick else ((128, 8), (128, 32), (256, 8), (256, 32))
    for model in ("lunet",) if quick else ("lunet", "sn"):
        for size, batch in sizes:
            note(f"training step: {model}, {batch} pairs of {size}x{size}")
            compiled = batch == 8 and not quick and device == "cpu"
            seconds = 8.0 if compiled else 3.0
            yield training_step(model, size, batch, device, compiled, seconds)
            if (size, batch) == (256, 8) and len(_thread_counts(device)) > 1:
                with threads_set(1):
                    yield training_step(model, size, batch, device, False, seconds)
    if not quick:
        yield from training_on_a_volume(device, note)


def training_on_a_volume(device: str, note: Note) -> Iterator[Row]:
    """On a CPU a smaller one, and at half resolution, as `diffreg train` has it by default."""
    size, half = (64, True) if device == "cpu" else (128, False)
    note(f"training step: lunet, 1 pair of {size}x{size}x{size}")
    for number in _thread_counts(device):
        with threads_set(number):
            yield training_step("lunet", size, 1, device, False, 8.0, 3, half)


def prediction_rows(quick: bool, device: str, note: Note) -> Iterator[Row]:
    """Single images and batches, a volume, and from file to file."""
    for model in ("lunet",) if quick else ("lunet", "sn"):
        for batch in (1, 16):
            note(f"prediction: {model}, {batch} pairs of 256x256")
            yield prediction(model, 256, batch, device, 2.0 if quick else 5.0)
    if not quick:
        yield from prediction_of_a_volume(device, note)
    if device == "cpu":
        note("prediction: lunet, 256x256, file to file")
        yield file_to_file(256, 3 if quick else 15)


def prediction_of_a_volume(device: str, note: Note) -> Iterator[Row]:
    """At half resolution, as networks of volumes are by default."""
    note("prediction: lunet, 1 pair of 96x96x96")
    for number in _thread_counts(device):
        with threads_set(number):
            yield prediction("lunet", 96, 1, device, 5.0, 3, True)


def _thread_counts(device: str) -> tuple[int, ...]:
    """All, and one."""
    threads = torch.get_num_threads()
    return (threads, 1) if device == "cpu" and threads > 1 else (threads,)


@contextmanager
def threads_set(number: int) -> Iterator[None]:
    """torch's threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
