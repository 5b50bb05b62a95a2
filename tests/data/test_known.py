"""Labels, points and displacements of pairs are changed as their images are."""

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.data.augmentation import Augmentation
from diffreg.data.drawing import drawn
from diffreg.data.images import read_image
from diffreg.data.known import Known, label_values, one_hot, together
from diffreg.data.manifest import Pair
from diffreg.data.pairs import PairDataset
from diffreg.data.transforms import write_displacement
from diffreg.data.undrawn import Draws, Undrawn
from diffreg.fields import identity_grid, warp_points
from diffreg.ops import warp

SHAPE = (40, 36)


def blob(at, width=2.0):
    grid = identity_grid(SHAPE)[0]
    apart = grid - torch.tensor(at).reshape(2, 1, 1)
    return torch.exp(-(apart**2).sum(0) / (2 * width**2))[None, None]


def peak(image):
    """The centre of mass of a blob, voxels."""
    weights = image[0, 0].clamp(min=0) ** 2
    grid = identity_grid(image.shape[2:])[0]
    return (grid * weights).sum((1, 2)) / weights.sum()


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(flip_axes=(0, 1)),
        Augmentation(crop=(30, 28)),
        Augmentation(amplitude=2.0, sigma=8.0),
        Augmentation(amplitude=2.0, sigma=8.0, flip_axes=(0,), crop=(32, 30)),
    ],
    ids=["mirrored", "cropped", "bent", "all"],
)
def test_points_and_displacements_follow_the_images(augmentation):
    """A blob in each image, the points on them, and a shift that leads from one to the other."""
    at = torch.tensor([[18.0, 15.0]]), torch.tensor([[20.0, 18.0]])  # moving, fixed
    moving, fixed = (blob(points[0].tolist()) for points in at)
    shift = (at[0] - at[1]).reshape(1, 2, 1, 1).expand(1, 2, *SHAPE)
    known = Known(None, None, at[0][None], at[1][None], shift)
    for seed in range(4):
        random = augmentation.random(SHAPE, [np.random.default_rng(seed)])
        draws = Draws.of(random, augmentation, SHAPE, known=True)
        batch = drawn(
            Undrawn(torch.cat([moving, fixed], 1), SHAPE, draws, augmentation, known=known)
        )
        images, after = (batch.moving, batch.fixed), batch.known
        for image, points in zip(images, (after.moving_points, after.fixed_points), strict=True):
            torch.testing.assert_close(peak(image), points[0, 0], atol=0.3, rtol=0)
        assert after.displacement.shape[2:] == images[1].shape[2:]
        led = warp_points(after.fixed_points, after.displacement)
        torch.testing.assert_close(led, after.moving_points, atol=0.05, rtol=0)
        apart = (warp(images[0], after.displacement) - images[1]).abs()[:, :, 6:-6, 6:-6]
        assert apart.max() < 0.1


def test_what_some_pairs_lack_is_filled_with_what_does_not_count():
    some = Known(
        torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    )
    more = Known(None, None, torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 2, 4, 4))
    both = together([some, more, Known()], (4, 4))
    assert both.moving_label.flatten(1).sum(1).tolist() == [32, 0, 0]
    assert torch.isfinite(both.fixed_points).flatten(1).sum(1).tolist() == [6, 2, 0]
    assert torch.isfinite(both.displacement).flatten(1).sum(1).tolist() == [0, 32, 0]
    assert together([Known(), Known()], (4, 4)) == Known()


def test_labels_become_channels():
    label = torch.tensor([[[[0, 5, 2]]]])
    assert label_values([label, None, torch.tensor([[[[7]]]])]) == [2.0, 5.0, 7.0]
    assert one_hot(label, [2, 5, 7])[0, :, 0].tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert one_hot(label, []).shape == (1, 0, 1, 3)


@pytest.fixture
def pair(tmp_path):
    """Fixed voxels of 2 mm; the moving image's array begins one voxel further to the right."""
    images = {name: np.diag([2.0, 2.0, 1.0, 1.0]) for name in ("moving", "fixed")}
    images["moving"][0, 3] = 2
    for name, affine in images.items():
        values = np.random.default_rng(len(name)).random((12, 10, 1)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii")
        label = (values > 0.5).astype(np.uint8) * 3
        nib.save(nib.Nifti1Image(label, affine), tmp_path / f"{name}_label.nii")
        (tmp_path / f"{name}_points.csv").write_text("i,j\n3,4\n5,6.5\n")
    fixed = read_image(tmp_path / "fixed.nii")
    truth = torch.full((1, 2, 12, 10), 0.5)
    write_displacement(tmp_path / "truth.nii", truth, fixed)
    files = {
        f"{name}_{what}": tmp_path / f"{name}_{what}{end}"
        for name in images
        for what, end in (("label", ".nii"), ("points", ".csv"))
    }
    return Pair(
        tmp_path / "moving.nii",
        tmp_path / "fixed.nii",
        true_displacement=tmp_path / "truth.nii",
        **files,
    )


def test_files_of_a_manifest(pair):
    dataset = PairDataset([pair], terms=("labels", "landmarks", "displacement"))
    known = dataset.batch([0]).known
    assert known.fixed_points.tolist() == [[[3, 4], [5, 6.5]]]
    assert known.moving_points.tolist() == [[[4, 4], [6, 6.5]]]  # by the headers
    assert known.displacement.unique().tolist() == [0.5]
    sample = dataset.sample(0)
    assert torch.equal(known.fixed_label, (sample.fixed_label == 3).float())
    assert known.moving_label.shape == (1, 1, 12, 10)
    alone = PairDataset([pair])
    assert alone.batch([0]).known == Known()  # nothing is read that nobody asked for


def test_what_no_pair_has_is_said(pair):
    bare = Pair(pair.moving, pair.fixed)
    for term, columns in (
        ("labels", "moving_label and fixed_label"),
        ("landmarks", "moving_points and fixed_points"),
        ("displacement", "true_displacement"),
    ):
        with pytest.raises(ValueError, match=rf"objective\.{term} needs pairs that have {columns}"):
            PairDataset([bare], terms=(term,))
        PairDataset([bare, pair], terms=(term,)).batch([0, 1])


def test_a_displacement_on_another_grid_is_refused(pair, tmp_path):
    truth = torch.zeros(1, 2, 12, 10)
    write_displacement(tmp_path / "truth.nii", truth, read_image(pair.moving))
    with pytest.raises(ValueError, match="is not on the grid of the fixed image"):
        PairDataset([pair], terms=("displacement",))
