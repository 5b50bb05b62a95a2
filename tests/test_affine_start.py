"""From the command line and from Python: an affine map first, then the warp, one map in the end."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from test_volumes import AFFINE, head, save

import diffreg
from diffreg.affine.start import AffineStarts, affine_start
from diffreg.cli.main import main
from diffreg.data.affine import read_affine
from diffreg.data.manifest import Pair
from diffreg.data.normalization import Normalization
from diffreg.data.pairs import find_pairs
from diffreg.data.prepare import PairImages
from diffreg.data.prepared_pairs import PreparedPairs
from diffreg.data.store import Held
from diffreg.data.transforms import write_displacement
from diffreg.evaluation import measure_pair
from diffreg.system.files import FileWarning

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"levels": 1, "iterations": 2}


def turned(degrees, shift):
    world = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    world[:2, :2], world[:3, 3] = [[c, -s], [s, c]], shift
    return world


MOVED = turned(15, [6, -5, 4])  # where the header of the moving image puts it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    for name, place in (("moving", MOVED @ AFFINE), ("fixed", AFFINE)):
        save(folder / f"{name}.nii.gz", head(), place)
        save(folder / f"{name}_label.nii.gz", (head() > 120).astype(np.int16), place)
        (folder / f"{name}.csv").write_text("i,j,k\n8,9,7\n14,10,6\n")
    columns = "moving,fixed,moving_label,fixed_label,moving_points,fixed_points"
    row = "moving.nii.gz,fixed.nii.gz,moving_label.nii.gz,fixed_label.nii.gz,moving.csv,fixed.csv"
    (folder / "pairs.csv").write_text(f"{columns}\n{row}\n")
    return folder


@pytest.fixture(scope="module")
def out(folder):
    words = [str(folder / f"{name}.nii.gz") for name in ("moving", "fixed")]
    assert main(["register", *words, "-o", str(folder / "out"), "--similarity", "ncc"]) == 0
    return folder / "out"


def test_the_turned_image_is_brought_back(out):
    metrics = json.loads((out / "metrics.json").read_text())
    found = metrics["affine"]
    assert found["kept"] and found["kind"] == "affine" and found["after"] > 0.99
    np.testing.assert_allclose(found["matrix"], MOVED, atol=0.3)
    np.testing.assert_allclose(read_affine(out / "affine.mat"), found["matrix"], atol=1e-12)
    warped = nib.load(out / "warped.nii.gz").get_fdata()
    assert np.abs(warped - head()).mean() < 1
    assert "Affine start: affine (ncc): turned by 1" in (out / "report.html").read_text("utf-8")


def test_what_was_done_is_printed(folder, tmp_path, capsys):
    words = [str(folder / f"{name}.nii.gz") for name in ("moving", "fixed")]
    for kind in ("rigid", "none"):
        given = ["--affine", kind, "--similarity", "ncc", "--device", "cpu"]
        assert main(["register", *words, "-o", str(tmp_path / kind), *given]) == 0
    said = capsys.readouterr().err
    assert said.count("affine start: rigid (ncc): turned by 1") == 1
    assert np.array_equal(read_affine(tmp_path / "none" / "affine.mat"), np.eye(4))


def test_labels_go_through_both_maps(folder, out, tmp_path, capsys):
    label, file = str(folder / "moving_label.nii.gz"), str(tmp_path / "label.nii.gz")
    assert main(["apply", str(out), label, "-o", file]) == 0
    whole = np.asarray(nib.load(file).dataobj)
    assert (whole != (head() > 120)).mean() < 0.01
    alone = str(tmp_path / "alone.nii.gz")
    field = str(out / "displacement.nii.gz")
    assert main(["apply", field, label, "-o", alone]) == 0
    assert "the displacement alone: affine.mat lies beside it" in capsys.readouterr().err
    assert main(["apply", field, label, "-o", alone, "--affine", str(out / "affine.mat")]) == 0
    assert np.array_equal(np.asarray(nib.load(alone).dataobj), whole)
    assert "lies beside" not in capsys.readouterr().err


def test_an_evaluation_measures_the_whole_map(folder, tmp_path):
    words = ["evaluate", str(folder / "pairs.csv"), "-o", str(tmp_path / "out")]
    assert main([*words, "--similarity", "ncc"]) == 0
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["dice_after"]) > 0.95 and float(row["tre_after"]) < 1
    given = ["--displacements", str(tmp_path / "out")]
    assert main([*words[:3], str(tmp_path / "again"), *given]) == 0
    with (tmp_path / "again" / "evaluation.csv").open() as file:
        (again,) = csv.DictReader(file)
    assert again["dice_after"] == row["dice_after"] and again["tre_after"] == row["tre_after"]


def slices(one, other, code=1):
    """Two slices as NIfTI files have them."""
    found = []
    for place in (one, other):
        file = nib.Nifti1Image(head()[:, :, 8:9], place)
        file.set_sform(place, code)
        found.append(diffreg.image(file))
    return PairImages(*found)


def test_slices_that_say_they_are_aligned_stay():
    shifted = AFFINE.copy()
    shifted[:2, 3] += 4
    assert affine_start(slices(AFFINE, AFFINE)).found is None  # one grid
    assert affine_start(slices(shifted, AFFINE)).found is not None  # two scanners
    assert affine_start(slices(shifted, AFFINE, code=2)).found is None  # aligned, by their headers
    plane = np.ascontiguousarray(head()[:, :, 8])
    assert diffreg.register(plane, plane, **QUICK).start.found is not None  # arrays say nothing


def test_a_slice_moves_in_its_plane():
    shifted = turned(10, [3, 2, 0]) @ AFFINE
    pair = slices(shifted, AFFINE)
    found = affine_start(pair, "affine", "ncc")
    np.testing.assert_allclose(found.matrix, turned(10, [3, 2, 0]), atol=0.4)
    assert found.matrix[2].tolist() == [0, 0, 1, 0]


def test_images_that_do_not_meet_by_their_headers():
    """A raw volume's header may put it anywhere."""
    away = np.eye(4)
    away[:3, 3] = 500, -300, 200
    moving = diffreg.image(head(), away @ AFFINE)
    result = diffreg.register(moving, diffreg.image(head(), AFFINE), similarity="ncc", **QUICK)
    np.testing.assert_allclose(result.affine, away, atol=0.5)
    assert result.metrics["after"]["ncc"] > 0.99


def test_the_affine_is_undone_where_it_does_not_help():
    noise = np.random.default_rng(0).normal(size=head().shape).astype(np.float32)
    images = (diffreg.image(head() + noise * k, AFFINE) for k in (0.5, 1.0))
    result = diffreg.register(*images, similarity="ncc", **QUICK)
    assert np.abs(result.affine - np.eye(4)).max() < 0.2


def test_cuda_where_there_is_none(folder, out, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = [str(folder / f"{name}.nii.gz") for name in ("moving", "fixed")]
    apply = ["apply", str(out), words[0], "-o", str(folder / "no.nii.gz")]
    for command in (["register", *words, "-o", str(folder / "no")], apply):
        assert main([*command, "--device", "cuda"]) == 2
        assert "device cuda needs a GPU that torch sees" in capsys.readouterr().err


def test_the_true_displacement_is_that_of_the_whole_map(folder, tmp_path):
    """A shift by the header, found by the affine: the truth counts from the header, too."""
    shift = np.eye(4)
    shift[:3, 3] = 4, -6, 3
    save(tmp_path / "moving.nii.gz", head(), shift @ AFFINE)
    fixed = diffreg.read_image(folder / "fixed.nii.gz")
    voxels = np.linalg.solve(AFFINE[:3, :3], shift[:3, 3])
    still = torch.from_numpy(voxels).float().reshape(1, 3, 1, 1, 1).expand(1, 3, *fixed.shape)
    write_displacement(tmp_path / "true.nii.gz", still, fixed)
    result = diffreg.register(
        tmp_path / "moving.nii.gz", fixed, affine=shift, similarity="ncc", levels=1, iterations=1
    )
    pair = Pair(tmp_path / "moving.nii.gz", folder / "fixed.nii.gz",
                true_displacement=tmp_path / "true.nii.gz")  # fmt: skip
    values = measure_pair(pair, result)
    assert values["end_point_error_after"] < 0.05
    assert values["end_point_error_before"] < 1e-3  # before the warp, after the affine


def test_an_affine_that_was_lost_is_missed(folder, out, tmp_path):
    shutil.copytree(out, tmp_path / "lost")
    (tmp_path / "lost" / "affine.mat").unlink()
    label = str(folder / "moving_label.nii.gz")
    assert main(["apply", str(tmp_path / "lost"), label, "-o", str(tmp_path / "no.nii.gz")]) == 2
    assert not (tmp_path / "no.nii.gz").exists()


def test_what_is_not_asked_for_again_goes(tmp_path):
    moving, fixed = diffreg.image(head(shift=1.0), AFFINE), diffreg.image(head(), AFFINE)
    result = diffreg.register(moving, fixed, affine="none", similarity="ncc", **QUICK)
    result.save(tmp_path / "out", jacobian=True)
    result.save(tmp_path / "out", report=False, composites=False)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"warped.nii.gz", "displacement.nii.gz", "affine.mat", "metrics.json"}


def test_a_window_is_of_the_affine_start_too(tmp_path):
    """Of one pair, of a manifest and of training: what pads a CT is far below all tissues."""
    x = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in head().shape), indexing="ij"))
    outside = (x**2).sum(0) > 1.2
    values = [np.where(outside, by, head(shift=s)) for by, s in ((-3000, 2.0), (-1000, 0.0))]
    window, kind = Normalization(window=(0, 200)), "translation"

    def found(given, **options):
        pair = [diffreg.image(image.astype(np.float32), AFFINE) for image in given]
        result = diffreg.register(*pair, affine=kind, similarity="ncc", **QUICK, **options)
        return np.array(result.metrics["affine"]["matrix"])

    wanted = found([image.clip(0, 200) for image in values])
    assert np.array_equal(found(values, normalization=window), wanted)
    with pytest.warns(FileWarning, match=r"42 % of the voxels are -3000, all others"):
        assert not np.allclose(found(values), wanted, atol=0.1)
    inside = (~outside).astype(np.float32)
    found(values, fixed_mask=inside, moving_mask=inside)  # nothing is said of what does not count
    for name, image in zip(("moving", "fixed"), values, strict=True):
        save(tmp_path / f"{name}.nii.gz", image.astype(np.float32), AFFINE)
    (tmp_path / "pairs.csv").write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n")
    words = ["--affine", kind, "--similarity", "ncc", "--window", "0", "200", "--iterations", "2"]
    assert main(["register", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "o"), *words]) == 0
    (metrics,) = tmp_path.glob("o/*/metrics.json")
    assert json.loads(metrics.read_text())["affine"]["matrix"] == wanted.tolist()
    start, pairs = AffineStarts(kind, "ncc"), find_pairs([tmp_path / "pairs.csv"], dimensions=3)
    matrix = PreparedPairs(window, Held(1e9), start=start)._matrix(pairs[0], None)
    assert np.array_equal(matrix, wanted)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_plane_that_is_not_the_last_axis_starts_by_its_header(axis):
    """An affine in space of one plane would leave it: half of the image went black."""
    pair = [
        diffreg.image(head(shift=s).take([8], axis).astype(np.float32), AFFINE) for s in (1.0, 0.0)
    ]
    for images in (pair, [image.data[0, 0].numpy() for image in pair]):
        with pytest.warns(FileWarning, match="one voxel along an axis: no affine start is looked"):
            result = diffreg.register(*images, similarity="ncc", **QUICK)
        assert result.metrics["compared_percent"] > 90 and np.array_equal(result.affine, np.eye(4))


def test_a_label_that_is_lost_overlaps_by_nothing(tmp_path):
    """As `evaluate` has it, and whatever the affine start: the labels are those of the files."""
    moving, fixed = diffreg.image(head(shift=1.0), AFFINE), diffreg.image(head(), AFFINE)
    labels = np.zeros((2, *head().shape), np.int16)
    labels[:, 8:14, 6:12, 5:9] = 1
    labels[0, :1], labels[1, -2:] = 2, 2
    moving_label, fixed_label = (diffreg.image(label, AFFINE) for label in labels)
    away = np.eye(4)
    away[0, 3] = 2 * AFFINE[0, 0]  # the moving file's second label leaves the grid
    for affine in ("none", away):
        result = diffreg.register(moving, fixed, affine=affine, similarity="ncc", **QUICK)
        result = result.save(tmp_path / "out", report=False, labels=(moving_label, fixed_label))
        found = result.metrics["dice"]
        assert found["by_headers"] == 0.5 and max(found["before"], found["after"]) <= 0.5


def test_the_affine_alone_takes_what_register_takes(folder):
    found = diffreg.register_affine(
        str(folder / "moving.nii.gz"), nib.load(folder / "fixed.nii.gz"), "rigid", "ncc"
    )
    np.testing.assert_allclose(found.matrix, MOVED, atol=0.3)


@pytest.mark.parametrize("named", [{}, {"similarity": None}, {"similarity": "auto"}])
def test_the_affine_alone_is_the_start_of_register(named, folder):
    pair = [str(folder / f"{name}.nii.gz") for name in ("moving", "fixed")]
    result = diffreg.register(*pair, iterations=1, levels=1)
    found = diffreg.register_affine(*pair, **named)
    assert found.similarity == result.metrics["affine"]["similarity"] == "mi"
    assert np.array_equal(found.matrix, result.affine)


def test_two_slices_that_lean_apart_beyond_the_grid():
    """Within half a slice on the grid, and not in what surrounds it."""
    lean = np.eye(4)
    c, s = np.cos(np.radians(0.8)), np.sin(np.radians(0.8))
    lean[[0, 0, 2, 2], [0, 2, 0, 2]] = c, -s, s, c
    lean[2, 3] = -31.5 * s
    x = np.arange(64.0)
    blob = np.exp(-((x[:, None] - 30) ** 2 + (x - 33) ** 2) / 90)
    images = (diffreg.image(blob, affine) for affine in (lean, np.eye(4)))
    result = diffreg.register(*images, affine="none", similarity="ncc", **QUICK)
    assert result.metrics["after"]["ncc"] > 0.99


def test_a_far_turn_that_nobody_asked_for_is_doubted():
    lying = turned(90, [0, 0, 0]) @ AFFINE
    pair = diffreg.image(head(), lying), diffreg.image(head(), AFFINE)
    found = diffreg.register(*pair, similarity="ncc", **QUICK)
    assert any("The affine start turned the moving image by" in w for w in found.warnings)
    asked = diffreg.register(*pair, similarity="ncc", search=True, **QUICK)
    assert asked.warnings == []


def test_arrays_that_belong_to_an_image_lie_where_it_does():
    place = turned(10, [30, -20, 5]) @ AFFINE
    moving, fixed = nib.Nifti1Image(head(), place), nib.Nifti1Image(head(), AFFINE)
    known = turned(10, [30, -20, 5])
    masks = {"fixed_mask": head() > -1, "moving_mask": torch.from_numpy(head() > -1)}
    result = diffreg.register(moving, fixed, affine=known, similarity="ncc", **masks, **QUICK)
    np.testing.assert_allclose(result.warped.affine, AFFINE, atol=1e-5)
    labels = (head() > 120).astype(np.int16)
    assert (result.apply(labels) != labels).mean() < 0.01
    with pytest.raises(ValueError, match=r"(image|moving) is an array of shape \[22, 20, 15\]"):
        result.apply(labels[..., :15])
    with pytest.raises(ValueError, match=r"fixed_mask is an array of shape \[3, 3, 3\]"):
        diffreg.register(moving, fixed, fixed_mask=np.ones((3, 3, 3)))


@pytest.mark.parametrize("factor", [10, 1e4])
def test_voxels_of_very_different_size(factor):
    """A result, or a line; not a trace, nor an hour."""
    large = diffreg.image(head(), AFFINE @ np.diag([factor, factor, factor, 1]))
    small = diffreg.image(head(), AFFINE)
    for pair in ((small, large), (large, small)):
        try:
            diffreg.register(*pair, similarity="ncc", **QUICK)
        except ValueError as error:
            assert len(str(error)) > 20


def test_a_singular_map_is_none():
    with pytest.raises(ValueError, match="affine is singular"):
        diffreg.register(head(), head(), affine=np.zeros((4, 4)))
