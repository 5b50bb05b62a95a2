"""Which files hold images, by their names."""

from __future__ import annotations

from pathlib import Path

from diffreg.data import _dicom, _itk, _nifti, _npz

# Of images that may lie side by side in a folder; a .dcm file is as a rule a slice of one, and a
# .hdr file the header of a .img file.
ENDINGS = (*_nifti.ENDINGS, *_nifti.MGH_ENDINGS, ".img", ".png", _npz.ENDING, *_itk.ENDINGS)


def kind_of(path: str | Path) -> str:
    """The kind of file that a name asks for.

    Args:
        path: a file name, or a folder, which is a DICOM series.

    Returns:
        "nifti", "png", "npz", or "itk" for what SimpleITK reads.

    Raises:
        ValueError: the name ends in something else.

    Example:
        >>> from diffreg.data._kinds import kind_of
        >>> kind_of("head.nii.gz")
        'nifti'
    """
    name = Path(path).name.lower()
    if file_of(path).is_dir():
        return "itk"
    if name.endswith((*_nifti.ENDINGS, *_nifti.READ_ONLY)):
        return "nifti"
    if name.endswith(".png"):
        return "png"
    if _npz.split_array(path)[0].name.lower().endswith(_npz.ENDING):
        return "npz"
    if name.endswith((*_itk.ENDINGS, _dicom.ENDING)):
        return "itk"
    raise ValueError(
        f"{path}: the name of an image must end in one of {', '.join((*ENDINGS, _dicom.ENDING))}, "
        "or be a folder with a DICOM series"
    )


def is_picture(path: str | Path) -> bool:
    """Whether a name is of a picture, PNG, JPEG or TIFF, which as a rule has no place in space."""
    return kind_of(path) == "png" or Path(path).suffix.lower() in _itk.PICTURES


def file_of(path: str | Path) -> Path:
    """The file or folder that holds an image: without `:array` and `:series`.

    Args:
        path: as `read_image` takes it.

    Example:
        >>> from diffreg.data._kinds import file_of
        >>> file_of("images.npz:mr").name
        'images.npz'
    """
    return _dicom.split_series(_npz.split_array(path)[0])[0]


def existing(path: str | Path) -> Path:
    """The path of a file that is there and holds something."""
    path = Path(path)
    file = file_of(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if file.is_dir() and _dicom.holds_dicom(file):
        return path
    if file.is_dir():
        raise ValueError(f"{file} is a folder, not an image: it holds no DICOM file")
    if not file.is_file():
        raise ValueError(f"{file} is no regular file")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty: 0 bytes")
    return path
