"""Which format a file has, by what it holds; where two are possible nothing is guessed."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from diffreg.data import _itk
from diffreg.transforms.formats import afni, freesurfer, nifti, niftyreg, voxels

_HEAD = 2**16  # bytes that tell the format of a text
_HDF5 = b"\x89HDF"
_NUMBER = re.compile(r"[-+.\deE]+")
# ITK skips what begins with #, its own heading too, which other programs write with a space.
_ITK = re.compile(r"^\s*(#\s*Insight Transform File|Transform\s*:)", re.MULTILINE)


def format_of(path: Path) -> str:
    """The format of a file.

    Args:
        path: the file; of an npz file with the array's name where there are several.

    Returns:
        One of the names in `diffreg.transforms.FORMATS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no transform that is read, or may be of several formats; the message lists
            them.

    Example: `format_of("affine.mat")`
    """
    if voxels.is_npz(path):
        return _of_npz(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.name.lower().endswith(nifti.ENDINGS):
        return _of_nifti(path, nifti.opened(path))
    if path.name.lower().endswith(_itk.PLACED):
        return "itk-field"
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.startswith(_HDF5):
        return "itk-h5"
    if path.suffix.lower() == ".m3z":
        raise ValueError(
            f"{path} is a morph of FreeSurfer in its own format; mri_warp_convert --inm3z makes a "
            "NIfTI warp of it"
        )
    if _is_matlab(head):
        return "itk-matlab"
    return _of_text(path, head)


def _is_matlab(head: bytes) -> bool:
    """Whether a file begins as a matrix of Matlab's level 4: type, rows, columns; or as level 5."""
    if head.startswith(b"MATLAB 5.0 MAT-file"):  # ITK writes level 4 alone, scipy's savemat this
        return True
    if len(head) < 20:
        return False
    words = [struct.unpack_from(order + "3I", head) for order in "<>"]
    return any(kind < 5000 and rows > 0 < columns for kind, rows, columns in words)


def choices(path: Path, what: str, *names: str) -> ValueError:
    """The error that lists the formats that a file may have."""
    return ValueError(
        f"{path} is {what}, which does not say of which kind: name its format, one of "
        f"{', '.join(names)}: {names[0]}:{path} on the command line, format= in Python"
    )


def _of_npz(path: Path) -> str:
    """Both are read alike; VoxelMorph calls its array vol."""
    return "voxelmorph" if voxels.holds_vol(path) else "learn2reg"


def _of_nifti(path: Path, file: Any) -> str:
    name, intent, shape = nifti.intent_name(file), nifti.intent(file), file.shape
    if name.startswith("NREG_"):
        kind = (
            "displacement" if file.header["intent_p1"] == niftyreg.DISPLACEMENT else "deformation"
        )
        return f"niftyreg-{kind}"
    if freesurfer.extension(file) is not None and intent == freesurfer.INTENT:
        return "freesurfer-warp"
    if len(shape) == 5 and afni.is_of_afni(file):
        return "afni-warp"
    if intent == freesurfer.INTENT:
        what = f"a field of intent {intent}, RAS mm to FreeSurfer and to ITK 5 alike"
        raise choices(path, what, "freesurfer-warp")
    if len(shape) == 4 and shape[3] == 3:
        both = ("fsl-warp-absolute", "fsl-warp-relative")
        others = () if intent == 2006 else ("learn2reg", "voxelmorph")
        raise choices(path, f"a field of shape {tuple(shape)}", *both, *others)
    return "itk-field"


def _of_text(path: Path, head: bytes) -> str:
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1", "replace")
    if _ITK.search(text.lstrip("\ufeff").removeprefix("\u00ef\u00bb\u00bf")):
        return "itk-text"
    if re.search(r"^\s*\(\s*Transform\s", text, re.MULTILINE):
        return "elastix"
    if re.search(r"^\s*type\s*=\s*\d", text, re.MULTILINE):
        return "freesurfer-lta"
    words = [word for line in text.splitlines() for word in line.split("#")[0].split()]
    if words and all(_NUMBER.fullmatch(word) for word in words):
        rows = [row for line in text.splitlines() if (row := line.split("#")[0].split())]
        if len(words) == 16:
            raise choices(path, "a bare 4 x 4 matrix", "fsl-flirt", "niftyreg-affine", "greedy")
        if len(words) == 9:
            raise choices(path, "a bare 3 x 3 matrix", "greedy")
        lone = len(words) == 12 and path.suffix.lower() == ".1d"
        if lone or all(len(row) == 12 for row in rows):
            return "afni-affine"  # several rows are a series, which is refused by that name
        if len(words) == 12:
            raise choices(path, "a bare 3 x 4 matrix", "afni-affine")
    raise ValueError(f"{path} is no transform of a format that is read")
