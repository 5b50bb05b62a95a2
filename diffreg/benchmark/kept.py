"""Figures of volumes under torch.compile, which may take minutes to be ready: kept in a file.

`python -m diffreg.benchmark.compiled` measures them; `diffreg bench` shows one beside its own where
torch and processor are the same.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from diffreg.registration.provenance import processor
from diffreg.system.atomic import replacing

Row = dict[str, Any]
KEPT = Path(__file__).parents[2] / "bench" / "results" / "compiled_baselines.json"
COMPILED = "torch.compile"
# What has to be the same, of a row and of the place.
SAME = ("operator", "direction", "shape", "dtype", "field", "threads", "memory")
PLACE = ("torch", "processor")


def here() -> Row:
    return {"torch": torch.__version__, "processor": processor()}


def load(path: Path = KEPT) -> list[Row]:
    """The kept figures; an installed package has none."""
    return json.loads(path.read_text()) if path.exists() else []


def with_kept(row: Row, kept: Iterable[Row]) -> Row:
    """The row with the kept figure of the same work in the same place, where there is one."""
    wanted = here() | {name: row[name] for name in SAME}
    for entry in kept:
        if all(entry[name] == wanted[name] for name in (*SAME, *PLACE)):
            ns = entry["nanoseconds_a_voxel"][COMPILED]
            ours = row["nanoseconds_a_voxel"]["diffreg"]
            row["nanoseconds_a_voxel"][COMPILED] = ns
            row["speedup"][COMPILED] = round(ns / ours, 2)
            row["compile_seconds"] = entry["compile_seconds"]
            row["compiled_earlier"] = {name: entry[name] for name in ("commit", "date")}
    return row


def kept_row(row: Row, commit: str) -> Row:
    """What is kept of a row that was measured under torch.compile.

    Raises:
        RuntimeError: the compiled function gives other results.
    """
    if COMPILED in row["disagrees"]:
        raise RuntimeError(f"{row['operator']}: {COMPILED} gives other results than diffreg")
    names = (COMPILED, "diffreg", "copy")
    return {
        **{name: row[name] for name in SAME},
        **here(),
        "nanoseconds_a_voxel": {name: row["nanoseconds_a_voxel"][name] for name in names},
        "spread": row["spread"][COMPILED],
        "compile_seconds": row["compile_seconds"],
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def keep(entry: Row, path: Path = KEPT) -> None:
    """Adds a figure to the file, in place of an earlier one of the same work and place."""
    others = [e for e in load(path) if any(e[name] != entry[name] for name in (*SAME, *PLACE))]
    with replacing(path) as temporary:
        temporary.write_text(f"{json.dumps([*others, entry], indent=1)}\n")
