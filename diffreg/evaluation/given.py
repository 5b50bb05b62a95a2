"""Displacements that are there already, of whatever program, found by the names of their pairs."""

from __future__ import annotations

from pathlib import Path

from diffreg.data.manifest import Manifest
from diffreg.data.slices import numbered
from diffreg.registration.cohort import PAIR_ERRORS, one_line
from diffreg.registration.folders import folder_name
from diffreg.registration.jobs import GIVEN, Cohort, Job
from diffreg.system.ranks import ALONE, Rank


def given(manifest: Manifest, folder: Path, rank: Rank = ALONE, slices: bool = False) -> Cohort:
    """The pairs of a manifest, each with its displacement in a folder, and those that have none.

    Args:
        manifest: the pairs.
        folder: holds `NAME/displacement.nii.gz`, `NAME.nii.gz` or `NAME.nii`, NAME as
            `folder_name` has it.
        rank: whose share it is.
        slices: volumes were registered slice by slice.

    Returns:
        Jobs whose folder is the pair's, or its file; failed are the others.

    Raises:
        FileNotFoundError: there is no such folder.

    Example: `given(read_manifest("pairs.csv"), Path("displacements")).jobs`
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of displacements {folder} does not exist")
    cohort = Cohort()
    for number, pair, error in numbered(manifest, PAIR_ERRORS, slices):
        if not rank.takes(number):
            continue
        if error is not None:
            cohort.failed.append((pair, one_line(error)))
            continue
        name = folder_name(number, pair)
        places = [folder / name, folder / f"{name}.nii.gz", folder / f"{name}.nii"]
        place = next((path for path in places if path.exists()), None)
        if place is None:
            reason = f"{folder} has neither {name}/displacement.nii.gz nor {name}.nii.gz"
            cohort.failed.append((pair, reason))
        else:
            cohort.jobs.append(Job(number, pair, place, GIVEN))
    return cohort
