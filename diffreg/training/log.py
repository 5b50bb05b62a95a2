"""The logs of a training run, one line a step or validation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffreg.system.atomic import replacing
from diffreg.system.extras import require


class StepLog(NamedTuple):
    """A step: means over its batch, the smallest corner determinant and the folded cells in it.

    The peak, MiB, is the most that the run has held so far: on a GPU what torch allocated there, on
    a CPU what is resident of the process.
    The last four are 0 where the objective has no weight for them.
    """

    step: int
    epoch: int
    total: float
    similarity: float
    diffusion: float
    bending: float
    determinant: float
    smallest_determinant: float
    folded_percent: float
    gradient_norm: float
    learning_rate: float
    pairs_per_second: float
    peak_memory: float
    labels: float = 0.0
    landmarks: float = 0.0
    displacement: float = 0.0
    inverse_consistency: float = 0.0


class ValidationLog(NamedTuple):
    """A validation: means over its pairs, the smallest determinant of all; NaN without labels."""

    step: int
    total: float
    similarity: float
    diffusion: float
    bending: float
    determinant: float
    smallest_determinant: float
    folded_percent: float
    dice_before: float
    dice: float
    labels: float = 0.0
    landmarks: float = 0.0
    displacement: float = 0.0
    inverse_consistency: float = 0.0


@contextmanager
def appending(
    path: str | Path, after: int, kind: type[Any] = StepLog
) -> Iterator[Callable[[Any], None]]:
    """Go on with a log; what it says of later steps, which will be taken again, is dropped.

    Args:
        path: the CSV file; its folder must exist.
        after: the last step whose line is kept.
        kind: of the lines.

    Yields:
        A function that writes one line, which is in the file at once.

    Example: `with appending("log.csv", 0) as append: append(entry)`
    """
    kept = [entry for entry in read_log(path, kind) if entry.step <= after]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([kind._fields, *map(_line, kept)])
    with Path(path).open("a", newline="", buffering=1) as file:
        writer = csv.writer(file)
        yield lambda entry: writer.writerow(_line(entry))


def read_log(path: str | Path, kind: type[Any] = StepLog) -> list[Any]:
    """The log in a file, but for a last line that a killed run left half-written.

    Args:
        path: the CSV file.
        kind: of the lines; a column that is not in the file has its default, or is NaN.

    Returns:
        Its lines; none where there is no such file.

    Example: `read_log("run/log.csv")[-1].total`
    """
    path = Path(path)
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    missing = dict.fromkeys(kind._fields, math.nan) | kind._field_defaults

    def entry(line: dict[str, str]) -> Any:
        values = {name: float(line.get(name, missing[name])) for name in kind._fields}
        whole_numbers = {name: int(values[name]) for name in ("step", "epoch") if name in values}
        return kind(**{**values, **whole_numbers})

    return [entry(line) for line in csv.DictReader(whole.splitlines())]


@contextmanager
def tensorboard(folder: Path, after: int) -> Iterator[Callable[[str, Any, bytes | None], None]]:
    """Writes what TensorBoard shows; events of later steps, of a run that was killed, are hidden.

    Args:
        folder: of the event files.
        after: the last step that counts.

    Yields:
        A function of (title, entry, picture): each number of a log entry as `title/name`, and a PNG
        file as `title/pair`.

    Raises:
        ImportError: TensorBoard is not installed.
    """
    require("tensorboard", "training.tensorboard", "tensorboard")
    pillow = require("PIL.Image", "pictures")
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder), purge_step=after + 1) as writer:

        def show(title: str, entry: Any, picture: bytes | None = None) -> None:
            for name, value in entry._asdict().items():
                unused = value == entry._field_defaults.get(name)
                if name != "step" and not math.isnan(value) and not unused:
                    writer.add_scalar(f"{title}/{name}", value, entry.step)
            if picture is not None:
                pixels = np.asarray(pillow.open(io.BytesIO(picture)).convert("RGB"))
                writer.add_image(f"{title}/pair", pixels, entry.step, dataformats="HWC")

        yield show


def _line(entry: Any) -> tuple[int | str, ...]:
    return tuple(value if isinstance(value, int) else f"{value:.6g}" for value in entry)
