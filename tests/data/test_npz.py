"""Images as arrays of npz files."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch

from diffreg.data.geometry import display_orientation
from diffreg.data.images import count_slices, kind_of, read_image, write_image
from diffreg.data.transforms import read_displacement, write_displacement


@pytest.fixture
def folder(tmp_path):
    picture = np.arange(12.0).reshape(3, 4)
    stack = np.stack([picture, 2 * picture])
    np.savez(tmp_path / "two.npz", mr=picture, stack=stack, flags=picture > 5, c=picture + 1j)
    np.savez_compressed(tmp_path / "one.npz", picture)
    return tmp_path


def test_arrays_by_name_and_by_slice(folder):
    image = read_image(f"{folder}/two.npz:mr")
    assert torch.equal(image.data[0, 0], torch.arange(12.0).reshape(3, 4))
    assert (image.kind, image.spacing) == ("npz", (1.0, 1.0))
    assert display_orientation(image.affine, image.kind) == (False, False, False)
    assert count_slices(f"{folder}/two.npz:stack") == 2
    assert read_image(f"{folder}/two.npz:stack", 1).data.max() == 22
    whole = read_image(f"{folder}/two.npz:stack")
    assert (whole.shape, whole.spacing) == ((2, 3, 4), (1.0, 1.0, 1.0))
    assert np.linalg.det(whole.affine) > 0
    assert read_image(folder / "one.npz").shape == (3, 4)
    assert read_image(f"{folder}/two.npz:flags", label=True).data.sum() == 6
    assert kind_of("a.npz:b") == "npz"


def test_results_are_written_as_nifti(folder):
    image = read_image(folder / "one.npz")
    write_image(folder / "out.nii.gz", image.data, image)
    again = read_image(folder / "out.nii.gz")
    assert torch.equal(again.data, image.data)
    assert np.array_equal(again.affine, image.affine)
    u = torch.rand(1, 2, 3, 4)
    write_displacement(folder / "u.nii.gz", u, image)
    torch.testing.assert_close(read_displacement(folder / "u.nii.gz")[0], u)


def claiming(shape):
    """An npz file whose array's header claims a shape that the file does not hold."""
    header, archive = io.BytesIO(), io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.npy", header.getvalue() + bytes(64))
    return archive.getvalue()


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_refusals(folder, monkeypatch):
    monkeypatch.chdir(folder)
    np.savez(folder / "trap.npz", np.array([Trap()], dtype=object))
    (folder / "claim.npz").write_bytes(claiming((10**6, 10**6)))
    (folder / "text.npz").write_bytes(b"no archive")
    (folder / "zero.npz").write_bytes(b"")
    for name, message in {
        "two.npz": "which array is meant is not said; name one as two.npz:ARRAY, of mr, stack",
        "two.npz:none": "it has no array none",
        "two.npz:c": "holds values of type complex128",
        "trap.npz": "holds Python objects, which are not read",
        "claim.npz": "claims .*, more than the file holds",
        "text.npz": "is not a readable npz file",
        "zero.npz": "is empty: 0 bytes",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_image(folder / name)
    assert not (folder / "trapped").exists()
    with pytest.raises(FileNotFoundError, match=r"none.npz does not exist"):
        read_image(f"{folder}/none.npz:mr")
    with pytest.raises(ValueError, match=r"has no slice 2: its slices are 0\.\.1"):
        read_image(f"{folder}/two.npz:stack", 2)
