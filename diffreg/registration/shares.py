"""What the ranks of one command tell each other: by files in the output folder, nobody waits.

Each rank leaves what the others cannot see in the pairs' folders in a file of its own before it
looks for those of the others; so the one that ends last finds all of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diffreg.registration._json import read_json
from diffreg.system.atomic import replacing
from diffreg.system.ranks import Rank

FAILED, MEASURED = "failed", "measured"


def tell(out: Path, rank: Rank, what: str, entries: dict[str, Any]) -> None:
    """Leave entries for the other ranks; a rank alone leaves none.

    Args:
        out: the folder of the results; it is made where it does not exist.
        rank: whose they are.
        what: FAILED or MEASURED.
        entries: by keys that are those of one pair and request.

    Example: `tell(out, Rank(1, 4), FAILED, {job.key: "a.nii.gz is not readable"})`
    """
    if rank.alone or not entries:
        return
    out.mkdir(exist_ok=True)
    with replacing(_file(out, rank, what)) as temporary:
        # With NaN, as Python has it: no other program reads it.
        temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def told(out: Path, rank: Rank, what: str) -> dict[str, Any]:
    """The entries of all ranks so far, where there are as many as this one knows of."""
    found: dict[str, Any] = {}
    for number in range(rank.count):
        try:
            found |= read_json(_file(out, Rank(number, rank.count), what))
        except (ValueError, OSError):
            continue
    return found


def claimed(out: Path, rank: Rank, *state: object) -> bool:
    """Whether a rank is the first that finds all done, and writes the report.

    Args:
        out: the folder of the results.
        rank: who asks.
        state: what the report is made of; where it is another one, it is written again.

    Example: `claimed(out, this_rank(), [job.key for job in cohort.jobs])`
    """
    mark = hashlib.sha256(repr(state).encode(errors="surrogatepass")).hexdigest()[:16]
    try:
        (out / f"rank-all-of-{rank.count}-{mark}.json").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def forget(out: Path, rank: Rank) -> None:
    """Remove what this rank left before, as it tries again; one alone removes what all left."""
    count = "*" if rank.alone else str(rank.count)
    for who in ("*",) if rank.alone else (str(rank.number), "all"):
        for file in out.glob(f"rank-{who}-of-{count}-*.json"):
            file.unlink(missing_ok=True)


def _file(out: Path, rank: Rank, what: str) -> Path:
    return out / f"rank-{rank.number}-of-{rank.count}-{what}.json"
