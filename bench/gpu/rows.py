"""What a part has found out, a line each: into the run's file as it is measured, and as text."""

import json
import os
import sys
from typing import Any

FILE = "DIFFREG_GPU_ROWS"  # of the environment: the file that run.py reads
LEFT_OUT = 3  # a part's exit status: what it needs is not on this machine


def put(**row: Any) -> None:
    """Adds a row; one with `failed` in it makes the part fail at its end."""
    if path := os.environ.get(FILE):
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
    print("  ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(v)}" for name, v in value.items())
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


class Trial:
    """Runs pieces of a part, each of which may fail by itself.

        trial = Trial()
        with trial("warp", shape=[1, 1, 8, 8]):
            ...
        trial.end()

    A piece that the device has no kernel or not the memory for gives a row that says so; any other
    error too, and the exit status.
    """

    def __init__(self) -> None:
        self._failed = False
        self._about: dict[str, Any] = {}

    def __call__(self, name: str, **about: Any) -> "Trial":
        self._about = {"name": name, **about}
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        error = _in_words(error)
        kind = type(error)
        first = (str(error).strip() or kind.__name__).splitlines()[0][:300]
        if isinstance(error, NotImplementedError) or kind.__name__ == "OutOfMemoryError":
            put(**self._about, left_out=first)
        else:
            self._failed = True
            put(**self._about, failed=f"{kind.__name__}: {first}")
        return True

    def end(self) -> None:
        sys.exit(int(self._failed))


def _in_words(error: Exception) -> Exception:
    """What torch said to an operator that was called past its Python function: of memory, above
    all, which is all that a smaller card lacks."""
    from diffreg.ops._autograd import in_words  # run.py takes this module before there is a core

    return in_words(error) if isinstance(error, RuntimeError) else error
