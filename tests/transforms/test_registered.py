"""What register leaves: displacement, affine, composite and inverses are one map, and its way back;
SimpleITK, the command line and Python agree on them."""

import importlib.util
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import diffreg
from diffreg.cli.main import main
from diffreg.data.grid import LPS
from diffreg.system.files import FileWarning
from diffreg.transforms import Affine, Field, compose, read

LEFT = {"composite.h5", "inverse_composite.h5", "inverse_displacement.nii.gz"}


def blobs(size, at):
    """Two balls in a soft box, whose places depend on `at`."""
    x = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij"))
    found = torch.zeros(size)
    for centre, width in (((0.3, 0.1, -0.2), 0.15), ((-0.4, -0.2, 0.3), 0.1)):
        middle = torch.tensor(centre[: len(size)]) + at
        found += torch.exp(-((x - middle.reshape(-1, *[1] * len(size))) ** 2).sum(0) / width)
    return (200 * found).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two oblique volumes, registered from a known affine map."""
    place = tmp_path_factory.mktemp("registered")
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * [1.5, 2.0, 1.8], (10, -20, 5)
    known = np.eye(4)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.06, -0.04, 0.05)
    known[:3, :3] = 1.03 * np.array(turn.GetMatrix()).reshape(3, 3)
    known[:3, 3] = 6, -5, 4
    moving_affine = known @ affine
    for name, at, where in (("moving", 0.08, moving_affine), ("fixed", 0.0, affine)):
        nib.save(nib.Nifti1Image(blobs((22, 20, 18), at), where), place / f"{name}.nii.gz")
    result = diffreg.register(
        place / "moving.nii.gz", place / "fixed.nii.gz", affine=known, iterations=15, levels=2
    )
    result.save(place / "out", report=False)
    return place, result


def test_the_files_are_one_map(folder):
    place, result = folder
    out = place / "out"
    points = np.random.default_rng(1).uniform(-9, 9, (30, 3)) + result.fixed.grid.centre
    there = result.apply(points)
    assert np.linalg.norm(there - points, axis=1).min() > 3
    parts = compose([read(out / "displacement.nii.gz"), read(out / "affine.mat")])
    itk = sitk.ReadTransform(str(out / "composite.h5"))
    by_itk = np.array([itk.TransformPoint(tuple(p)) for p in points @ LPS[:3, :3]]) @ LPS[:3, :3]
    for found in (parts(points), read(out / "composite.h5")(points), by_itk):
        assert np.abs(found - there).max() < 1e-4
    assert np.abs(result.transform(points) - there).max() < 1e-4


def test_the_way_back_and_its_residual(folder):
    place, _ = folder
    out = place / "out"
    told = json.loads((out / "metrics.json").read_text())["inverse"]
    assert told["at_voxels_mm"] < 1e-3 <= told["between_voxels_mm"] and told["outside_percent"] < 20
    whole, back = read(out / "composite.h5"), read(out / "inverse_composite.h5")
    assert [type(part) for part in back.steps] == [Affine, Field]
    centre = nib.load(place / "fixed.nii.gz").affine @ [10, 10, 9, 1]
    points = centre[:3] + np.random.default_rng(2).uniform(-8, 8, (40, 3))
    error = np.linalg.norm(back(whole(points)) - points, axis=1).max()
    assert error < 2 * told["between_voxels_mm"] + 1e-3
    alone = read(out / "inverse_displacement.nii.gz")
    inverse = compose([read(out / "affine.mat").inverse(), alone])
    assert np.abs(inverse(whole(points)) - back(whole(points))).max() < 1e-4


def test_certificate_of_the_composition(folder):
    place, result = folder
    told = json.loads((place / "out/metrics.json").read_text())["certificate"]
    assert told["verdict"] == "homeomorphism"
    determinant = np.linalg.det(result.affine[:3, :3])
    assert told["affine_determinant"] == pytest.approx(determinant) and determinant > 1.05
    # By differences of the whole map in mm, at the corner where it is smallest.
    corner = np.array(told["where"], float)
    affine, step = result.fixed.affine, 0.02
    inner = [np.where(corner < np.array(result.fixed.shape) / 2, 1, -1) * step * k for k in (1,)]
    points = corner + np.vstack([np.zeros(3), np.diag(inner[0])])
    mapped = result.transform(points @ affine[:3, :3].T + affine[:3, 3])
    columns = (mapped[1:] - mapped[0]).T / inner[0]
    found = np.linalg.det(columns) / np.linalg.det(affine[:3, :3])
    assert told["smallest_determinant_mm"] <= found * (1 + 0.05) + 1e-3
    assert told["smallest_determinant_mm"] > 0


def test_warped_again_by_every_way(folder, capsys):
    """The folder, its two files, its composite, and SimpleITK with the composite."""
    place, _ = folder
    out, moving, fixed = place / "out", str(place / "moving.nii.gz"), str(place / "fixed.nii.gz")
    field, affine = str(out / "displacement.nii.gz"), str(out / "affine.mat")
    there = ["-t", str(out), "-t", f"[{affine},1]", "-t", affine]
    ways = {
        "folder": [str(out), moving],
        "files": ["-t", field, "-t", affine, "--fixed", fixed, moving],
        "composite": [moving, "-t", str(out / "composite.h5"), "--fixed", fixed],
        "back and forth": [*there, moving, "--fixed", fixed],
    }
    found = {}
    for name, words in ways.items():
        file = place / f"{name}.nii.gz"
        fill = ["--fill", "0", "--interpolation", "linear"]
        assert main(["apply", *words, "-o", str(file), *fill]) == 0
        found[name] = nib.load(file).get_fdata()
    said = capsys.readouterr()
    assert "moving <- affine.mat <- displacement.nii.gz <- fixed" in said.err
    assert "moving <- affine.mat <- inverse of affine.mat <- out <- fixed" in said.err
    images = [sitk.ReadImage(name, sitk.sitkFloat32) for name in (moving, fixed)]
    itk = sitk.Resample(*images, sitk.ReadTransform(str(out / "composite.h5")))
    found["SimpleITK"] = sitk.GetArrayFromImage(itk).T
    for name, values in found.items():
        apart = np.abs(values - found["folder"])
        assert np.ptp(values) > 100 and (apart > 1e-4 * 200).sum() <= 2, name


def test_a_slice_leaves_them_too(tmp_path):
    images = [diffreg.image(blobs((24, 22), at), spacing=2.0) for at in (0.1, 0.0)]
    result = diffreg.register(*images, affine="none", iterations=5)
    result.save(tmp_path / "flat", report=False)
    assert {p.name for p in (tmp_path / "flat").iterdir()} > LEFT
    itk = sitk.ReadTransform(str(tmp_path / "flat/composite.h5"))
    assert itk.GetDimension() == 2
    points = np.random.default_rng(0).uniform(5, 40, (20, 2))
    by_itk = -np.array([itk.TransformPoint(tuple(p)) for p in -points])
    assert np.abs(by_itk - result.transform(points)).max() < 1e-4
    assert np.abs(read(tmp_path / "flat/composite.h5")(points) - by_itk).max() < 1e-4


def test_without_composites_none_is_left(tmp_path):
    images = [diffreg.image(blobs((24, 22), at)) for at in (0.1, 0.0)]
    result = diffreg.register(*images, affine="none", iterations=2)
    result.save(tmp_path / "out", report=False)
    result.save(tmp_path / "out", report=False, composites=False)
    assert not LEFT & {path.name for path in (tmp_path / "out").iterdir()}


def test_without_h5py_it_is_said(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "h5py" else find(n))
    images = [diffreg.image(blobs((24, 22), at)) for at in (0.1, 0.0)]
    result = diffreg.register(*images, affine="none", iterations=2)
    with pytest.warns(FileWarning, match=r"without h5py composite.h5 .* pip install 'diffreg.h5.'"):
        result.save(tmp_path / "out", report=False)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left & LEFT == {"inverse_displacement.nii.gz"}


def test_a_folded_displacement_has_no_inverse(tmp_path):
    images = [diffreg.image(blobs((12, 12), at)) for at in (0.1, 0.0)]
    result = diffreg.register(*images, affine="none", iterations=2)
    result.displacement[0, 0, 6, 6] = 3.0
    saved = result.save(tmp_path / "out", report=False)
    assert "there is no inverse where a field folds" in saved.metrics["inverse"]["refused"]
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "composite.h5" in left and "inverse_composite.h5" not in left
    with pytest.raises(ValueError, match="no inverse where a field folds"):
        _ = result.inverse
