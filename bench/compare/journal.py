"""What was measured so far, a line of JSON each, so that a stopped run goes on."""

import json
from collections.abc import Callable, Hashable
from pathlib import Path


def read(path: Path, key: Callable[[dict], Hashable]) -> dict:
    """key -> its last line; a line that was cut off by a kill is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[key(run)] = run
    return found


def read_some(path: Path, key: Callable[[dict], Hashable]) -> dict:
    """As `read`, for results that are written anew out of it: of nothing they would be empty.

    Raises:
        SystemExit: there is no line.
    """
    found = read(path, key)
    if not found:
        raise SystemExit(f"nothing has been run so far: {path} has no line")
    return found


def append(run: dict, path: Path) -> None:
    """A line of its own, whatever a kill has left of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if size := file.tell():
            file.seek(size - 1)
            cut_off = file.read() != b"\n"
        else:
            cut_off = False
        file.write(b"\n" * cut_off + json.dumps(run).encode() + b"\n")
