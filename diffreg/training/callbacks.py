"""Who is told how a run goes: its logs, TensorBoard, and what a user brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from diffreg.system.atomic import replacing
from diffreg.training.log import StepLog, ValidationLog, appending, tensorboard
from diffreg.training.own import called, imported

LOG, VALIDATION, TENSORBOARD = "log.csv", "validation.csv", "tensorboard"
PICTURES = "pictures"
EVENTS = ("on_start", "on_step", "on_validation", "on_checkpoint", "on_end")


class Callback:
    """What a run tells, on its first process; a callback has any of these, and need be no subclass.

    `trainer` is the `diffreg.training.Trainer`: its config, out, step, network, best can be read.
    What a callback raises stops the run; `on_end` is called then too.

    Example:
        >>> from diffreg.training import Callback
        >>> class Printed(Callback):
        ...     def on_step(self, trainer, entry):
        ...         print(entry.step, entry.total)
    """

    def on_start(self, trainer: Any) -> None:
        """The first step of this process comes next; trainer.step are taken already."""

    def on_step(self, trainer: Any, entry: StepLog) -> None:
        """A step was taken: entry.step. On a GPU several are told of together, when all are."""

    def on_validation(self, trainer: Any, entry: ValidationLog, picture: bytes) -> None:
        """The network was measured; picture is a PNG file of one pair."""

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        """A checkpoint is on the disk: last.pt or best.pt."""

    def on_end(self, trainer: Any) -> None:
        """The run ends: finished, stopped early, interrupted or failed."""


class CSVLog(Callback):
    """log.csv and validation.csv in the run's folder."""

    def on_start(self, trainer: Any) -> None:
        self.open = ExitStack()
        self.on_line = self.open.enter_context(appending(trainer.out / LOG, trainer.step))
        if trainer.validation is not None:
            log = appending(trainer.out / VALIDATION, trainer.step, ValidationLog)
            self.on_validation_line = self.open.enter_context(log)

    def on_step(self, trainer: Any, entry: StepLog) -> None:
        self.on_line(entry)

    def on_validation(self, trainer: Any, entry: ValidationLog, picture: bytes) -> None:
        self.on_validation_line(entry)

    def on_end(self, trainer: Any) -> None:
        self.open.close()


class Pictures(Callback):
    """pictures/ in the run's folder: one pair, a file a validation."""

    def on_validation(self, trainer: Any, entry: ValidationLog, picture: bytes) -> None:
        (trainer.out / PICTURES).mkdir(exist_ok=True)
        with replacing(trainer.out / PICTURES / f"step{entry.step:07d}.png") as temporary:
            temporary.write_bytes(picture)


class TensorBoard(Callback):
    """tensorboard/ in the run's folder."""

    def on_start(self, trainer: Any) -> None:
        self.open = ExitStack()
        self.show = self.open.enter_context(tensorboard(trainer.out / TENSORBOARD, trainer.step))

    def on_step(self, trainer: Any, entry: StepLog) -> None:
        self.show("training", entry, None)

    def on_validation(self, trainer: Any, entry: ValidationLog, picture: bytes) -> None:
        self.show("validation", entry, picture)

    def on_end(self, trainer: Any) -> None:
        self.open.close()


def callbacks_of(settings: Any, given: Sequence[Any] = ()) -> list[Any]:
    """All of a run: its own, those that the settings name, those that were given.

    Args:
        settings: [training].
        given: to the Trainer.

    Raises:
        ImportError: a path that cannot be imported.
        TypeError, ValueError: what is there is no callback.
    """
    own = [Pictures(), CSVLog(), *([TensorBoard()] if settings.tensorboard else [])]
    named = [_named(path) for path in settings.callbacks]
    for callback in (*named, *given):
        if isinstance(callback, type) or not any(hasattr(callback, name) for name in EVENTS):
            got = repr(callback) if isinstance(callback, type) else type(callback).__name__
            raise TypeError(
                f"a callback must be an object that has one of {', '.join(EVENTS)}, got {got}"
            )
    return [*own, *named, *given]


def _named(path: str) -> Any:
    """What an import path names; a class is made without arguments."""
    found = imported(path, "training.callbacks")
    return called(found, path, "training.callbacks", {}) if isinstance(found, type) else found


def tell(callbacks: Sequence[Any], event: str, *parts: Any) -> None:
    """Call one method of each that has it."""
    for callback in callbacks:
        if hasattr(callback, event):
            getattr(callback, event)(*parts)


@contextmanager
def telling(callbacks: Sequence[Any], trainer: Any) -> Iterator[None]:
    """The run begins, and ends for all for whom it began, whatever happens."""
    with ExitStack() as ends:
        for callback in callbacks:
            tell([callback], "on_start", trainer)
            ends.callback(tell, [callback], "on_end", trainer)
        yield
