"""Transforms in the files of other tools: read, written, and told apart by what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data.transforms import read_field as read_voxels
from diffreg.system.files import require_folder
from diffreg.transforms.formats import (
    afni,
    detection,
    elastix,
    freesurfer,
    fsl,
    itk_field,
    itk_h5,
    itk_text,
    niftyreg,
    voxels,
)
from diffreg.transforms.formats.adapter import Adapter, Places
from diffreg.transforms.places import place_of
from diffreg.transforms.values import Field, Transform

_ADAPTERS: dict[str, Adapter] = {
    "itk-text": itk_text.TEXT,
    "itk-matlab": itk_text.MATLAB,
    "itk-h5": itk_h5.H5,
    "itk-field": itk_field.FIELD,
    "fsl-flirt": fsl.FLIRT,
    "fsl-warp-absolute": fsl.ABSOLUTE,
    "fsl-warp-relative": fsl.RELATIVE,
    "freesurfer-lta": freesurfer.LTA,
    "freesurfer-warp": freesurfer.WARP,
    "niftyreg-affine": niftyreg.AFFINE,
    "niftyreg-deformation": niftyreg.DEFORMATIONS,
    "niftyreg-displacement": niftyreg.DISPLACEMENTS,
    "greedy": niftyreg.GREEDY,
    "elastix": elastix.ELASTIX,
    "learn2reg": voxels.LEARN2REG,
    "voxelmorph": voxels.VOXELMORPH,
    "afni-affine": afni.AFFINE,
    "afni-warp": afni.WARP,
}
# The names of formats, and a line on each.
FORMATS: dict[str, str] = {name: adapter.about for name, adapter in _ADAPTERS.items()}
# The direction and the unit of their numbers, before they are read.
STORED: dict[str, str] = {name: adapter.stored for name, adapter in _ADAPTERS.items()}
# What a name asks for where no format is named; the first that fits.
_BY_ENDING = ("itk-text", "itk-matlab", "itk-h5", "itk-field", "freesurfer-lta")


def format_of(path: str | Path) -> str:
    """The format of a file, by what it holds.

    Args:
        path: the file; of an npz file with the array's name where there are several, `a.npz:vol`.

    Returns:
        One of the names in FORMATS.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no transform that is read, or may be of several formats; the message lists
            them.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from diffreg.transforms import Affine, format_of, write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     name = write(folder + "/a.mat", Affine(np.eye(4)))
        ...     name == format_of(folder + "/a.mat"), name
        (True, 'itk-matlab')
    """
    return detection.format_of(Path(path))


def read(
    path: str | Path, format: str | None = None, fixed: Any = None, moving: Any = None
) -> Transform:
    """A transform of any tool, as what it does: a pull-back, fixed to moving, in RAS mm.

    Args:
        path: the file; of an npz file with the array's name where there are several, `a.npz:vol`.
        format: one of FORMATS; None: as its content says.
        fixed, moving: the images, where the file's numbers mean nothing without them: a path, of
            which the header is read, an Image, a Grid, or what else `diffreg.register` takes.

    Returns:
        An Affine, a Field in float64, or a Chain of them.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package that reads it is not installed.
        ValueError: it is damaged or of no such format; the format must be named; an image is
            needed, or is not the one of the file.

    Warns:
        FileWarning: what is read is unverified, or lies where tools disagree.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from diffreg.transforms import Affine, read, write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write(folder + "/a.tfm", Affine(np.diag([1.0, 2.0, 1.0, 1.0])))
        ...     read(folder + "/a.tfm")([[0.0, 3.0, 0.0]]).tolist()
        [[0.0, 6.0, 0.0]]
    """
    name = format_of(path) if format is None else _known(format)
    places = _places(fixed, moving)
    with np.errstate(all="ignore"):  # adapters look at what comes out, and refuse it in words
        return _ADAPTERS[name].read(Path(path), places)


def write(
    path: str | Path,
    transform: Transform,
    format: str | None = None,
    fixed: Any = None,
    moving: Any = None,
) -> str:
    """Write a transform in the format of any tool; the file appears whole or not at all.

    ITK's .tfm and .h5 hold any chain as it is. A format of one affine map takes a chain of affine
    maps, multiplied; a format of one field takes anything, sampled on the fixed image's grid.

    Args:
        path: .tfm, .txt, .mat, .h5, .nii, .nii.gz, .mha and .nrrd are ITK's where no format is
            named, .lta is FreeSurfer's.
        transform: what to write.
        format: one of FORMATS; None: as the path's ending says.
        fixed, moving: the images, as in `read`, where the format needs them; a single field keeps
            its own grid where fixed is not given.

    Returns:
        The format's name, as in FORMATS.

    Raises:
        ValueError: the ending or the format is none, an image is needed, or the format cannot hold
            the transform; the message says which.

    Example: see read.
    """
    path = Path(path)
    name = format_to_write(path, format)
    require_folder(path.absolute().parent, "the folder of the file,")
    if not isinstance(transform, Transform):
        raise TypeError(f"transform must be a Transform, got {type(transform).__name__}")
    places = _places(fixed, moving)
    adapter = _ADAPTERS[name]
    assert adapter.write is not None  # else it was refused
    with np.errstate(all="ignore"):
        adapter.write(path, transform, places)
    return name


def format_to_write(path: str | Path, format: str | None = None) -> str:
    """The format that `write` would write, known before there is something to write.

    Args:
        path, format: as in `write`.

    Returns:
        The format's name, as in FORMATS.

    Raises:
        ValueError: the ending or the format is none, is read only, or they do not fit.

    Example:
        >>> from diffreg.transforms import format_to_write
        >>> format_to_write("a.nii.gz"), format_to_write("a.nii.gz", "fsl-warp-relative")
        ('itk-field', 'fsl-warp-relative')
    """
    path = Path(path)
    name = _asked_for(path) if format is None else _known(format)
    adapter = _ADAPTERS[name]
    if adapter.write is None:
        raise ValueError(f"{path}: {name} is read only")
    if not can_hold(path, name):
        right = " or ".join(adapter.endings)
        raise ValueError(f"{path}: the name of a file of {name} must end in {right}")
    return name


def can_hold(path: str | Path, format: str) -> bool:
    """Whether a file of a format may be written, and be called so.

    Args:
        path: the file, which need not exist.
        format: one of FORMATS.

    Example:
        >>> from diffreg.transforms import can_hold
        >>> can_hold("a.h5", "itk-h5"), can_hold("a.nii.gz", "itk-h5"), can_hold("a.txt", "elastix")
        (True, False, True)
    """
    adapter = _ADAPTERS[_known(format)]
    fits = not adapter.endings or Path(path).name.lower().endswith(adapter.endings)
    return adapter.write is not None and fits


def read_field(
    path: str | Path, format: str | None = None, fixed: Any = None, moving: Any = None
) -> Tensor:
    """A displacement in voxels of its grid, of any format, for those who need no place in space.

    Args:
        path, format, fixed, moving: as in `read`; fields in voxels, Learn2Reg's and VoxelMorph's,
            need no image.

    Returns:
        (1, D, *S), float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read`; or it is not one field.

    Example: `fold_certificate(read_field("warp.nii.gz", "fsl-warp-relative", fixed, moving))`
    """
    name = format_of(path) if format is None else _known(format)
    if fixed is None and name in ("learn2reg", "voxelmorph"):
        if voxels.is_npz(Path(path)):
            return read_voxels(path)
        return torch.from_numpy(voxels.read_nifti(Path(path)).copy())[None]
    transform = read(path, name, fixed, moving)
    fields = [step for step in transform.steps if isinstance(step, Field)]
    if len(fields) != 1 or len(transform.steps) > 1:
        raise ValueError(f"{path} holds {_in_words(transform)}, not one displacement field")
    return fields[0].displacement


def _in_words(transform: Transform) -> str:
    kinds = ["a field" if isinstance(step, Field) else "an affine map" for step in transform.steps]
    return kinds[0] if len(kinds) == 1 else f"a chain of {len(kinds)}"


def _known(format: str) -> str:
    if format not in _ADAPTERS:
        raise ValueError(f"format must be one of {', '.join(_ADAPTERS)}, got {format!r}")
    return format


def _asked_for(path: Path) -> str:
    name = path.name.lower()
    for known in _BY_ENDING:
        if name.endswith(_ADAPTERS[known].endings):
            return known
    if name.endswith(".npz"):
        raise ValueError(f"{path}: name the format, learn2reg or voxelmorph (--to, format=)")
    written = [known for known, adapter in _ADAPTERS.items() if adapter.write is not None]
    raise ValueError(
        f"{path}: the name must end in .tfm, .txt, .mat, .h5, .nii, .nii.gz, .mha, .nrrd or .lta, "
        f"or the format must be named (--to, format=), one of {', '.join(written)}"
    )


def _places(fixed: Any, moving: Any) -> Places:
    return Places(
        None if fixed is None else place_of("fixed", fixed),
        None if moving is None else place_of("moving", moving),
    )
