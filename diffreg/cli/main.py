"""The command line: `diffreg register | evaluate | apply | certify | ... | demo | bench | info`.

A user's mistake is one line on stderr and exit status 2; DIFFREG_DEBUG=1 shows where it was found.
What is odd about a file that is read all the same is one line, too, once.
Its words are in diffreg.cli.parser, what the commands do in diffreg.cli.commands.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffreg.cli.notices import warning_in_lines
from diffreg.cli.parser import parsed
from diffreg.cli.streams import STANDARD_OUTPUT, drop_output, streams
from diffreg.system.atomic import FULL
from diffreg.system.own_code import place_of
from diffreg.system.signals import ENDING, Stopped, waits

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_GRACE = 5.0  # seconds in which a second signal is ignored: something is being put away


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows `diffreg` on the command line; None: this process's.

    Returns:
        The exit status: 0, 2 for a user's mistake, 128 and its number where a signal ended it: 130
        when interrupted, 143 when terminated.

    Example:
        >>> from diffreg.cli.main import main
        >>> main(["apply", "missing.nii.gz", "label.nii.gz", "-o", "out.nii.gz"])
        2
    """
    with streams():
        return _run(parsed(arguments))


def _run(options: argparse.Namespace) -> int:
    """The exit status of a command."""
    try:
        with _stopping(), warning_in_lines():
            _check_working_folder()
            status: int = options.run(options)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args else signal.SIGINT
        word = _WORDS.get(number) or f"ended by {signal.Signals(number).name}"
        print(f"diffreg: {word}; {options.safe(options)}", file=sys.stderr)
        return int(128 + number)
    except Exception as error:
        message = _message(error, options)
        if getattr(error, "filename", None) == STANDARD_OUTPUT:
            drop_output()
            if isinstance(error, BrokenPipeError):  # `diffreg ... | head`: nobody reads on
                return 141  # 128 + SIGPIPE, which not every system has
        if message is None or os.environ.get("DIFFREG_DEBUG"):
            raise
        # A full disk is of no line of anybody's.
        full = isinstance(error, OSError) and error.errno in FULL
        print(f"diffreg: error: {message}{'' if full else place_of(error)}", file=sys.stderr)
        return 2


def _check_working_folder() -> None:
    """Refuse a folder that was removed, perhaps made anew, under a terminal: no torch loads."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError(
            "the working folder was removed; where it was made anew, go there: cd $PWD"
        ) from None


def _message(error: Exception, options: argparse.Namespace) -> str | None:
    """A user's mistake in one line; None for a fault of the program.

    What else is raised by code of the user's own, such as a callback, is a mistake there.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) and error.__cause__ is not None:
        return text  # of a dataset of somebody's own, which names the sample
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return "there is not enough memory for images of this size"
    if not isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return f"{type(error).__name__}: {text}" if place_of(error) else None
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        out, name = str(getattr(options, "out", "")), str(error.filename or "")
        place = out if out and (not name or f".{os.getpid()}-" in name) else name
        if error.errno in FULL:
            return f"{place}: {error.strerror.lower()}: no file was left half-written"
        return f"{place}: {error.strerror.lower()}" if place else text
    return text or type(error).__name__


@contextmanager
def _stopping() -> Iterator[None]:
    """Ctrl-C, SIGTERM and what else queues send end the command through its `finally`s."""
    last = [-_GRACE]
    caught: list[int] = []
    again: list[threading.Timer] = []
    here = threading.get_ident()
    others = sys.unraisablehook

    def stop(number: int, frame: Any) -> None:
        caught.append(number)
        now = time.monotonic()
        if now - last[0] >= _GRACE:
            last[0] = now
            if waits(number):
                return
            raise Stopped(number)

    def swallowed(report: Any) -> None:
        """Python drops, with a trace, what a finalizer or a weak reference's callback raises."""
        if not isinstance(report.exc_value, Stopped):
            return others(report)
        last[0] = -_GRACE
        number = report.exc_value.args[0]
        again.append(threading.Timer(0.01, signal.pthread_kill, (here, number)))
        again[-1].start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What is ignored, as `nohup` has it, stays so.
    ours = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in ours}
    sys.unraisablehook = swallowed
    try:
        yield
        # A library may have swallowed the exception, or made another one of it.
        if caught:
            raise Stopped(caught[0])
    except Exception as error:
        if caught:
            raise Stopped(caught[0]) from error
        raise
    finally:
        sys.unraisablehook = others
        for timer in again:
            timer.cancel()
            timer.join()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
