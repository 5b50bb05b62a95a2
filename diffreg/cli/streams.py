"""Standard output and error as jobs have them: closed, on a full disk, or with nobody who reads."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STANDARD_OUTPUT = "standard output"


class _Named:
    """Standard output: what it raises names it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _naming():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with _naming():
            self._stream.flush()


class _Lossy(_Named):
    """Standard error: a line that cannot be written there, such as a bar, ends no work."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # the second is of a stream that was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def _naming() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = STANDARD_OUTPUT
        raise


@contextmanager
def streams() -> Iterator[None]:
    """What a command may print to, whatever became of it."""
    _open_all()
    given = sys.stdout, sys.stderr
    for stream in given:  # names of files may hold what has no letters there
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w") as nothing:
        output, error = _Named(given[0] or nothing), _Lossy(given[1] or nothing)
        sys.stdout, sys.stderr = output, error  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = given


def drop_output() -> None:
    """What is still to be written to standard output goes nowhere."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _open_all() -> None:
    """Standard input, output and error are open, if to nothing.

    The next file that is opened would else be one of them, and get what C libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
                os.set_inheritable(opened, True)
