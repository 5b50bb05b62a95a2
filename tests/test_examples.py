"""The examples run, both versions of them, and print what they measured."""

import importlib
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg import ops
from diffreg.data.pairs import PairDataset, find_pairs

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = ["--steps", "3", "--size", "32", "--pairs", "2"]

# Theirs, of their own library and of torch: not what is tested here.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture
def example(monkeypatch):
    """example("monai_loop", needs="monai"): the module, or the test is skipped."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def module(name, *, needs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(needs, reason=f"the example needs it: pip install {needs}")
            return importlib.import_module(name)

    return module


def check(sides, printed, name):
    theirs, ours = sides
    for side in sides:
        assert len(side.losses) == len(side.step_seconds) == 3
        assert torch.tensor(side.losses).isfinite().all()
        assert 0 < side.objective_bytes < side.step_bytes
    assert ours.objective_bytes < theirs.objective_bytes
    assert name in printed and "diffreg" in printed and "peak of a step, MiB" in printed


def test_monai_loop(example, capsys):
    loop = example("monai_loop", needs="monai")
    check(loop.main(ARGUMENTS), capsys.readouterr().out, "MONAI")


def test_voxelmorph_loop(example, capsys):
    loop = example("voxelmorph_loop", needs="voxelmorph")
    sides = loop.main(ARGUMENTS)
    check(sides, capsys.readouterr().out, "VoxelMorph")
    # The same objective but for the border of the integration, where these fields are near zero.
    theirs, ours = sides
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)


def test_lightning_loop(example, capsys):
    loop = example("lightning_loop", needs="lightning")
    found = loop.main(["--steps", "60", "--size", "32", "--pairs", "2"])
    (before,), (after,) = found["before"], found["after"]
    assert after["similarity"] < 0.95 * before["similarity"]
    assert after["folded"] == 0
    assert capsys.readouterr().out.startswith(f"before: similarity {before['similarity']:.4f}")


def test_an_operator_allocates_its_gradients_and_no_images_between(example):
    # What docs/operators.md says of memory.
    peak = example("side_by_side", needs="torch").peak_bytes
    warped, fixed = torch.rand(2, 1, 1, 64, 64)
    one_image = 4 * 64 * 64
    warped.requires_grad_()

    def gradient(operator):
        return torch.autograd.grad(operator(warped, fixed).sum(), warped)

    for operator in (ops.correlation, ops.local_correlation):
        gradient(operator)
        assert peak(lambda operator=operator: operator(warped, fixed)) < 1024
        assert peak(lambda operator=operator: gradient(operator)) < one_image + 1024


def cine(folder, patient, at):
    """A bright disc that beats at a known place of a still ground, and its label."""
    y, x = np.meshgrid(np.arange(40), np.arange(48), indexing="ij")
    radius = 6 + 2 * np.cos(np.arange(6) * np.pi / 3)
    disc = np.hypot(y - at[0], x - at[1])[..., None, None] < radius
    disc = np.repeat(disc, 3, axis=2)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    ground = (10 * (x + y) % 70)[..., None, None]
    image = (ground + 200 * disc).astype(np.int16)
    nib.save(nib.Nifti1Image(image, affine), folder / f"{patient}_cine.nii.gz")
    nib.save(nib.Nifti1Image(disc.astype(np.uint8), affine), folder / f"{patient}_endo.nii.gz")


def test_cine_becomes_manifests(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = importlib.import_module("cardiac_manifests")
    for patient, at in (("A", (12, 30)), ("B", (20, 20)), ("C", (20, 20))):
        cine(tmp_path, patient, at)
    rows = [f"{patient},{k},0,3" for patient in "ABC" for k in (0, 1)]
    (tmp_path / "ed_es_pairs.csv").write_text("\n".join(["patient,slice,ed,es", *rows]))
    out = tmp_path / "out"
    arguments = [str(tmp_path), str(out), "--validate", "B", "--test", "C", "--size", "24"]
    monkeypatch.setattr("sys.argv", ["cardiac_manifests.py", *arguments])
    script.main()
    training = find_pairs([out / "train.csv"])
    assert len(training) == 2 * 3 * 2  # slices, ordered pairs of phases 0, 2, 4
    assert {pair.group for pair in training} == {"A"}
    for name in ("validate", "test"):
        pairs = find_pairs([out / f"{name}.csv"])
        assert [pair.fixed_slice for pair in pairs] == [0, 1]
        sample = PairDataset(pairs).sample(0)
        assert sample.fixed.shape == (1, 1, 24, 24)
        assert sample.fixed_label.sum() > sample.moving_label.sum() > 30  # diastole is larger
    # The window is around the disc, and says so in the header.
    window = nib.load(out / "A_image00.nii")
    disc = np.argwhere(np.asarray(nib.load(out / "A_label00.nii").dataobj)[..., 0]).mean(0)
    assert np.abs(disc - 12).max() <= 6.5
    assert np.allclose(window.affine[:2, :2] @ disc + window.affine[:2, 3], (18, 45))


def test_volumes_become_manifests(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = importlib.import_module("volume_manifests")
    random = np.random.default_rng(0)
    for name in "abcdefgh":
        for kind in ("t1", "seg"):
            image = nib.Nifti1Image(random.random((6, 5, 4)).astype(np.float32), np.eye(4))
            nib.save(image, tmp_path / f"{name}_{kind}.nii")
    people = ["ab", "cd", "ef", "gh"]
    rows = [f"heads,{m}_t1.nii,{f}_t1.nii,{m}_seg.nii,{f}_seg.nii" for m, f in people]
    head = "group,moving,fixed,moving_label,fixed_label"
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["", str(tmp_path), "heads", str(out), "--test", "2"])

    (tmp_path / "pairs.csv").write_text("\n".join([head, *rows, rows[0].replace("heads", "other")]))
    script.main()
    found = {
        name: find_pairs([out / f"{name}.csv"], dimensions=3)
        for name in ("test", "validate", "train")
    }
    assert [pair.group for pair in found["test"]] == ["b", "d"]
    assert [pair.group for pair in found["validate"]] == ["f"]
    assert all(
        pair.moving_label and pair.fixed_label for pair in [*found["test"], *found["validate"]]
    )
    assert len(found["train"]) == 2  # of the last two people, either way

    (tmp_path / "pairs.csv").write_text("\n".join([head, *rows[:3], rows[3].replace("g_", "a_")]))
    with pytest.raises(SystemExit):
        script.main()
