"""Folders of images: which of their files are meant."""

from __future__ import annotations

import re
from pathlib import Path

from diffreg.data.images import ENDINGS

# How the names of label maps and masks end: 1000_seg, case-label, patient_gt, segmentation-12.
_LABELS = re.compile(
    r"(^|[\W_])([ad]?segs?|segmentations?|probseg|labels?|labelmap|lbl|masks?|gt|ground_?truth|"
    r"parcellation|annotations?)[\W_]?\d*$",
    re.IGNORECASE,
)


def folder_images(path: str | Path) -> list[Path]:
    """The images in a folder: no hidden files, and none that is named as labels or a mask.

    Args:
        path: the folder; it is not looked below.

    Returns:
        The files in the order of their names.

    Example:
        >>> import pathlib, tempfile
        >>> from diffreg.data.folders import folder_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "a_mask.png", ".a.png"):
        ...         (pathlib.Path(folder) / name).touch()
        ...     [file.name for file in folder_images(folder)]
        ['a.png']
    """
    return [file for file in _files(path) if not is_label_name(file.name)]


def folder_labels(path: str | Path) -> list[Path]:
    """The files that `folder_images` leaves out for their names, hidden ones not among them."""
    return [file for file in _files(path) if is_label_name(file.name)]


def is_label_name(name: str) -> bool:
    """Whether a file's name says that it holds labels or a mask.

    Example:
        >>> from diffreg.data.folders import is_label_name
        >>> is_label_name("1000_Seg.nii.gz"), is_label_name("unlabelled.nii")
        (True, False)
    """
    stem = name[: -len(_ending(name))] if _ending(name) else name
    return _LABELS.search(stem) is not None


def left_out(path: str | Path) -> str:
    """What a message adds about files that are not taken for images; nothing where there are none.

    Example: `left_out("images")` may be "; 2 named as labels are left out (a_seg.nii.gz, ...)"
    """
    labels = folder_labels(path)
    if not labels:
        return ""
    more = ", ..." if len(labels) > 1 else ""
    are = "are" if len(labels) > 1 else "is"
    return f"; {len(labels)} named as labels {are} left out ({labels[0].name}{more})"


def _files(path: str | Path) -> list[Path]:
    return [
        file
        for file in sorted(Path(path).iterdir())
        if _ending(file.name) and not file.name.startswith(".") and not file.is_dir()
    ]


def _ending(name: str) -> str:
    """The ending that makes a name an image's, the longest that fits."""
    found = [ending for ending in ENDINGS if name.lower().endswith(ending)]
    return max(found, key=len, default="")
