"""Pairs measured by several ranks: each its share; who ends last reads what the others found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from diffreg import __version__
from diffreg.data.normalization import Normalization
from diffreg.data.store import state_of
from diffreg.evaluation.evaluate import Measured, measure
from diffreg.registration.folders import DISPLACEMENT, METRICS
from diffreg.registration.jobs import GIVEN, Job
from diffreg.registration.shares import MEASURED, tell, told
from diffreg.system.ranks import Rank


def measure_share(
    jobs: Sequence[Job],
    out: Path,
    rank: Rank,
    how: tuple[bool, Normalization],
    progress: Callable[[int, int], None],
) -> int:
    """Measure a rank's pairs, and leave the numbers for the rank that ends last.

    Args:
        jobs: its registered pairs.
        out: the folder of the evaluation; it is made where it does not exist.
        rank: which.
        how: one_contrast and normalization, as `evaluate` takes them.
        progress: called with (pairs done, pairs).

    Returns:
        How many could not be measured.

    Example: `measure_share(cohort.jobs, out, this_rank(), (True, Normalization()), print)`
    """
    found = {}
    for number, job in enumerate(jobs, start=1):
        one = measure(job.pair, job.folder, *how)
        found[_key(job, how)] = [one.values, one.warnings, one.failed]
        progress(number, len(jobs))
    tell(out, rank, MEASURED, found)
    return sum(bool(failed) for _, _, failed in found.values())


def measured(
    jobs: Sequence[Job], out: Path, rank: Rank, how: tuple[bool, Normalization]
) -> dict[Path, Measured] | None:
    """What the ranks measured, by the pairs' folders; None while a pair is missing."""
    found = told(out, rank, MEASURED)
    keys = {job.folder: _key(job, how) for job in jobs}
    if not found.keys() >= set(keys.values()):
        return None
    return {folder: Measured(*found[key]) for folder, key in keys.items()}


def _key(job: Job, how: tuple[bool, Normalization]) -> str:
    """The pair's, and a hash of what its metrics are made of: request, files, normalization."""
    files = [value for value in astuple(job.pair) if isinstance(value, Path)]
    if job.request == GIVEN:
        files += [job.folder / DISPLACEMENT, job.folder / METRICS, job.folder]
    parts = [__version__, job.key, how[0], astuple(how[1]), [_state(path) for path in files]]
    return f"{job.key} {hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _state(path: Path) -> list[Any]:
    """Of a file, or of what holds an array; the name where it is missing."""
    try:
        return [path.name, *state_of(path)]
    except OSError:
        return [path.name]
