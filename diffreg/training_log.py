"""The log of a training run: one line a step, as CSV. Called by the trainer and the demo."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from diffreg._files import replacing


class StepLog(NamedTuple):
    """One line of the log: means over the batch, the smallest corner determinant in it."""

    step: int
    epoch: int
    total: float
    similarity: float
    diffusion: float
    bending: float
    determinant: float
    smallest_determinant: float
    gradient_norm: float
    learning_rate: float
    pairs_per_second: float


@contextmanager
def appending(path: str | Path, after: int) -> Iterator[Callable[[StepLog], None]]:
    """Go on with a log; what it says of later steps, which will be taken again, is dropped.

    Args:
        path: the CSV file; its folder must exist.
        after: the last step whose line is kept.

    Yields:
        A function that writes one line, which is in the file at once.

    Example: `with appending("log.csv", 0) as append: append(entry)`
    """
    kept = [entry for entry in read_log(path) if entry.step <= after]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([StepLog._fields, *map(_line, kept)])
    with Path(path).open("a", newline="", buffering=1) as file:
        writer = csv.writer(file)
        yield lambda entry: writer.writerow(_line(entry))


def read_log(path: str | Path) -> list[StepLog]:
    """The log in a file, but for a last line that a killed run left half-written.

    Args:
        path: the CSV file.

    Returns:
        Its lines; none where there is no such file.

    Example: `read_log("run/log.csv")[-1].total`
    """
    path = Path(path)
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    lines = csv.reader(whole.splitlines()[1:])
    return [StepLog(int(a), int(b), *map(float, rest)) for a, b, *rest in lines]


def _line(entry: StepLog) -> tuple[int | str, ...]:
    return (*entry[:2], *(f"{value:.6g}" for value in entry[2:]))
