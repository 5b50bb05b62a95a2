"""Signals that end a command: at once, or as soon as what must be whole is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What ends a command. Queues announce a time limit by any of them but the first.
ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """A signal came, args[0].

    A class of its own: KeyboardInterrupt itself, raised while a library runs exec(), makes CPython
    end the process by SIGINT whatever exit status is asked for.
    """


class _Whole:
    """Whether something must not be broken off, and the signal that waits for its end."""

    inside = False
    waiting: int | None = None


def waits(number: int) -> bool:
    """Whether a signal is to be raised later, by `whole`; Ctrl-C and a second one never are.

    Args:
        number: the signal, in whose handler this is asked.
    """
    if not _Whole.inside or _Whole.waiting is not None or number == signal.SIGINT:
        return False
    _Whole.waiting = number
    return True


@contextmanager
def whole() -> Iterator[None]:
    """What is inside is not broken off by a signal that ends the command, but by Ctrl-C.

    Raises:
        Stopped: afterwards, where one came.

    Example:
        >>> from diffreg.system.signals import whole
        >>> with whole():
        ...     a, b = 1, 2
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    _Whole.inside, _Whole.waiting = True, None
    try:
        yield
    finally:
        _Whole.inside = False
    if _Whole.waiting is not None:
        raise Stopped(_Whole.waiting)
