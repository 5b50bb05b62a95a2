"""Which voxels a registration compares, and what of the images it sees there."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_registration import FIXED, GRID, MOVING, QUICK, SHAPE, phantom
from torch import nn

from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.manifest import Pair
from diffreg.data.normalization import Normalization
from diffreg.data.pairs import PairDataset
from diffreg.data.prepare import PairImages, prepare
from diffreg.data.resampling import coverage, resample_to, usual_fill
from diffreg.data.resolution import as_coarse_as
from diffreg.evaluation.measures import measure_pair
from diffreg.losses import Objective
from diffreg.registration import read_registration, register, write_registration
from diffreg.registration.leaving import STRENGTH, add_leaving

pytestmark = pytest.mark.usefixtures("one_thread")
METRICS = ("ncc", "mutual_information", "relative_ssd")


def part(image, first, last):
    """Columns first:last of an image, at their place."""
    affine = image.affine.copy()
    affine[:3, 3] += first * affine[:3, 0]
    return replace(image, data=image.data[:, :, first:last].contiguous(), affine=affine)


def changed(image, scale, constant):
    return replace(image, data=image.data * scale + constant)


class Given(nn.Module):
    """A network that answers with one displacement."""

    def __init__(self, displacement):
        super().__init__()
        self.displacement = displacement

    def forward(self, moving, fixed):
        return self.displacement


def save(path, image):
    nib.save(nib.Nifti1Image(image.data[0, 0].numpy()[..., None], image.affine), path)
    return str(path)


# metrics


@pytest.mark.parametrize(("scale", "constant"), [(1, -1000), (1, 5000), (0.25, 0), (64, -3)])
def test_metrics_do_not_change_with_the_units_of_the_intensities(scale, constant):
    """The moving image ends within the fixed grid: what lies outside is no data."""
    moving = part(MOVING, 12, 64)
    plain = register(moving, FIXED, **QUICK).metrics
    other = register(*(changed(i, scale, constant) for i in (moving, FIXED)), **QUICK).metrics
    assert plain["after"]["ncc"] > 0.98
    assert plain["compared_percent"] == pytest.approx(other["compared_percent"], abs=0.1)
    for when in ("before", "after"):
        for name in METRICS:
            assert other[when][name] == pytest.approx(plain[when][name], abs=2e-3)


@pytest.mark.parametrize(("scale", "constant"), [(1, -1000), (0.25, 3000), (64, 0)])
def test_metrics_of_an_evaluation_do_not_change_with_the_units(scale, constant):
    """SSIM and normalised mutual information as well, of one displacement."""
    pair = (part(MOVING, 12, 64), FIXED)
    u = register(*pair, **QUICK).displacement

    def measured(*images):
        result = register(*images, network=Given(u), similarity="ncc")
        return measure_pair(Pair(Path("m.nii"), Path("f.nii")), result)

    plain, other = measured(*pair), measured(*(changed(i, scale, constant) for i in pair))
    names = {"ncc", "mutual_information", "normalized_mutual_information", "relative_ssd", "ssim"}
    names = {f"{name}_{when}" for name in names for when in ("before", "after")}
    assert names <= set(plain)
    for name in names:
        assert other[name] == pytest.approx(plain[name], abs=2e-3), name


def test_a_field_that_leaves_the_image_is_measured_on_what_it_still_shows(tmp_path):
    """Shifted by 10 voxels, a copy fits where it is, and 10 columns of the grid show nothing."""
    fixed = changed(FIXED, 1, -1000)
    moving = replace(fixed, data=fixed.data.roll(10, 2))
    moving.data[:, :, :10] = -1000
    u = torch.zeros(1, 2, *SHAPE)
    u[:, 0] = 10
    _, after, target, mask = prepare(moving, fixed).compared(u)
    assert mask[:, :, :-10].min() == 1 and mask[:, :, -10:].max() == 0
    torch.testing.assert_close(after[mask > 0], target[mask > 0], rtol=0, atol=1e-3)
    result = register(moving, fixed, network=Given(u), similarity="ncc")
    assert result.metrics["after"]["ncc"] == pytest.approx(1, abs=1e-6)
    assert result.metrics["after"]["relative_ssd"] == pytest.approx(0, abs=1e-5)
    assert result.metrics["compared_voxels"] == (SHAPE[0] - 10) * SHAPE[1]
    assert "compared on 84.4 % of the voxels" in result.verdict
    assert result.values[0, 0, -1, 0] == -1000  # air, not water
    write_registration(result, tmp_path, report=False)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["fill"] == -1000
    assert written["compared_percent"] == pytest.approx(100 * 54 / 64)


def test_before_is_measured_where_after_is():
    """The same voxels: a part that the result does not show is not in the first number either."""
    u = torch.zeros(1, 2, *SHAPE)
    u[:, 0, 40:] = 30
    before, _, _, mask = prepare(MOVING, FIXED).compared(u)
    result = register(MOVING, FIXED, network=Given(u), similarity="ncc")
    inside = mask[0, 0] > 0
    a, b = (image[0, 0][inside].numpy() for image in (before, result.compared.fixed))
    assert 0 < inside.sum() < inside.numel()
    assert result.metrics["before"]["ncc"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)


def blob(at):
    x = torch.arange(32.0)
    return torch.exp(-((x[:, None] - at[0]) ** 2 + (x - at[1]) ** 2) / 8)[None, None]


@pytest.mark.parametrize("similarity", ["ssd", "ncc"])
@pytest.mark.parametrize(
    "pair",
    [
        (1 - blob((12, 20)), blob((16, 16))),  # of opposite contrast: nothing fits better than this
        (blob((5, 5)), blob((26, 26))),  # too far away for each other
    ],
)
def test_leaving_the_image_does_not_lower_the_objective(similarity, pair):
    """With all of the image out of sight a correlation is 0, not negative, and nothing differs."""
    result = register(*(Image(data, np.eye(4)) for data in pair), objective=Objective(similarity))
    assert result.metrics["compared_percent"] > 90
    gone = torch.full((1, 2, 32, 32), 32.0)
    images = (pair[0], pair[1])
    value = Objective(similarity)(*images, result.displacement).total.item()
    without = Objective(similarity)(*images, gone).total.item()
    price = add_leaving(gone, torch.zeros_like(gone), STRENGTH * 60, gone.shape[2:])
    assert value < without + price


def test_the_price_of_leaving_and_its_gradient():
    """By hand: two of eight voxels of a row of four are led out, by one and by two voxels."""
    u = torch.zeros(1, 2, 2, 4, dtype=torch.float64)
    u[0, 1, 0, 3], u[0, 1, 1, 0] = 1.0, -2.0
    gradient = torch.ones_like(u)
    assert add_leaving(u, gradient, 3.0, u.shape[2:]) == pytest.approx(3 * (1 + 4) / 16 / 8)
    expected = torch.ones_like(u)
    expected[0, 1, 0, 3] += 3 * 2 / 16 / 8
    expected[0, 1, 1, 0] -= 3 * 4 / 16 / 8
    torch.testing.assert_close(gradient, expected)
    large = 6 * torch.randn(1, 2, 5, 4, dtype=torch.float64)
    value = add_leaving(large, slope := torch.zeros_like(large), 1.0, large.shape[2:])
    step = 1e-6 * torch.randn_like(large)
    change = add_leaving(large + step, torch.zeros_like(large), 1.0, large.shape[2:]) - value
    assert change == pytest.approx((slope * step).sum().item(), rel=1e-4)


# inside and fill


def test_inside_ends_half_a_voxel_beyond_the_outer_centres():
    moving = Image(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None], np.eye(4))
    finer = np.diag([0.25, 0.25, 1, 1])
    finer[:2, 3] = -1
    fixed = Image(torch.zeros(1, 1, 16, 4), finer)  # -1, -0.75, ... voxels of the moving image
    sampled = resample_to(moving, fixed, fill=-7)[0, 0, :, -1]  # at column -0.25, the edge's value
    index = -1 + 0.25 * np.arange(16)
    inside = (index >= -0.5) & (index < 1.5)
    expected = np.where(inside, 1 + 2 * index.clip(0, 1), -7)
    assert sampled.tolist() == expected.tolist()
    assert coverage(moving, fixed)[0, 0, :, -1].tolist() == inside.tolist()
    assert coverage(moving, fixed)[0, 0, :, 0].max() == 0


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_the_border_is_where_itk_has_it(interpolation):
    """Turned and shifted grids: every voxel equal, filled ones among them."""
    random = np.random.default_rng(0)
    moving = Image(
        torch.from_numpy(random.random((1, 1, 9, 7), np.float32)), np.diag([1, 1.5, 1, 1])
    )
    angle = 0.3
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:2, 3] = [1.3, -2.1]
    fixed = Image(torch.zeros(1, 1, 12, 14), affine)

    def itk(image):
        picture = sitk.GetImageFromArray(image.data[0, 0].numpy().T)
        spacing = np.array(image.spacing)
        picture.SetSpacing(spacing)
        picture.SetOrigin(image.affine[:2, 3])
        picture.SetDirection((image.affine[:2, :2] / spacing).flatten())
        return picture

    how = sitk.sitkLinear if interpolation == "linear" else sitk.sitkNearestNeighbor
    theirs = sitk.Resample(itk(moving), itk(fixed), sitk.Transform(2, sitk.sitkIdentity), how, -5.0)
    ours = resample_to(moving, fixed, interpolation=interpolation, fill=-5.0)[0, 0].numpy()
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(theirs).T, atol=1e-5)
    assert 0 < (ours == -5).sum() < ours.size


@pytest.mark.parametrize(
    ("values", "fill"),
    [
        ([0, 0, 0, 5], 0),  # a skull-stripped head
        ([-1000, -1000, 0, 40], -1000),  # a CT
        ([-1.5, 0.25, 0, 2], -1.5),  # z-scored: a single 0 is no background
        ([3, 3, 4, 5], 3),
    ],
)
def test_the_usual_fill(values, fill):
    assert usual_fill(Image(torch.tensor(values).reshape(1, 1, 2, 2).float(), np.eye(4))) == fill


def test_register_and_apply_fill_alike(tmp_path):
    """A CT that ends within the fixed grid: air outside, or what --fill says; 0 for labels."""
    moving, fixed = (changed(i, 1, -1000) for i in (part(MOVING, 20, 64), FIXED))
    labels = replace(moving, data=(moving.data > -950).to(torch.uint8))
    files = [save(tmp_path / f"{n}.nii.gz", i) for n, i in (("m", moving), ("f", fixed))]
    label = save(tmp_path / "l.nii.gz", labels)
    field = str(tmp_path / "o" / "displacement.nii.gz")
    assert main(["register", *files, "-o", str(tmp_path / "o")]) == 0
    assert main(["apply", field, files[0], "-o", str(tmp_path / "a.nii.gz")]) == 0
    nearest = ["--interpolation", "nearest", "-o", str(tmp_path / "l_w.nii.gz")]
    assert main(["apply", field, label, *nearest]) == 0
    filled = ["--fill", "-3", "-o", str(tmp_path / "b.nii.gz")]
    assert main(["apply", field, files[0], *filled]) == 0
    warped, same, other, warped_label = (
        nib.load(tmp_path / name).get_fdata()[..., 0]
        for name in ("o/warped.nii.gz", "a.nii.gz", "b.nii.gz", "l_w.nii.gz")
    )
    np.testing.assert_allclose(warped, same, atol=1e-3)
    outside = other == -3
    assert 0.2 < outside.mean() < 0.4
    assert (warped[outside] == moving.data.min().item()).all()
    assert (warped_label[outside] == 0).all() and set(np.unique(warped_label)) == {0, 1}


def test_a_fill_that_labels_cannot_hold_is_refused():
    labels = Image(torch.ones(1, 1, 3, 3, dtype=torch.uint8), np.eye(4))
    with pytest.raises(ValueError, match=r"fill must be a value of image, which holds torch.uint8"):
        resample_to(labels, FIXED, interpolation="nearest", fill=-1)


# nothing to compare


def flat_at(image, where):
    data = image.data.clone()
    data[..., where, :] = 3
    return replace(image, data=data)


@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_a_mask_over_a_flat_region_is_refused(which):
    chosen = slice(5, 15)
    pair = {"moving": MOVING, "fixed": FIXED}
    pair[which] = flat_at(pair[which], chosen)
    mask = replace(FIXED, data=torch.zeros(1, 1, *SHAPE, dtype=torch.uint8))
    mask.data[..., chosen, :] = 1
    with pytest.raises(ValueError, match=r"is 3 at all 560 voxels where the two images are"):
        register(**pair, fixed_mask=mask)


def test_an_overlap_of_one_voxel_is_refused():
    moving = replace(MOVING, affine=MOVING.affine.copy())
    moving.affine[:2, 3] += [SHAPE[0] - 1, 1.25 * (SHAPE[1] - 1)]
    with pytest.raises(ValueError, match=r"at the only voxel where the two images are compared"):
        register(moving, FIXED, affine="none")


def test_voxels_without_a_number_are_not_compared():
    data = MOVING.data.clone()
    data[..., :10, :] = torch.nan
    moving = Image(data, MOVING.affine)
    result = register(moving, FIXED, **QUICK)
    assert result.prepared.mask[..., :10, :].max() == 0
    assert np.isfinite(result.metrics["after"]["ncc"]) and result.metrics["after"]["ncc"] > 0.98
    assert bool(torch.isfinite(result.values).all())
    fixed = Image(torch.where(data.isnan(), torch.nan, FIXED.data), FIXED.affine)
    assert register(MOVING, fixed, **QUICK).mask[..., :10, :].max() == 0
    with pytest.raises(ValueError, match="holds no number"):
        Image(torch.full((1, 1, 3, 3), torch.nan), np.eye(4))


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_voxels_without_a_number_are_filled_as_those_outside_are(interpolation):
    """Half a voxel from one, nothing of the smallest number that stands for it is blended in."""
    data = MOVING.data + 500
    data[..., :10, :] = torch.nan
    moving = Image(data, MOVING.affine)
    u = torch.zeros(1, 2, *SHAPE)
    u[:, 0] = 0.5
    shown = resample_to(moving, FIXED, u, interpolation, fill=-7.0)
    assert torch.equal(shown == -7, coverage(moving, FIXED, u) == 0)
    assert (shown[..., :10, :] == -7).all() and (shown[..., 10:-1, :] >= 500).all()


def test_a_finer_image_is_smoothed_over_the_voxels_that_hold_a_number():
    """A constant stays a constant beside voxels that hold none."""
    data = torch.full((1, 1, 32, 32), 700.0)
    data[..., :16, 0] = 5  # the smallest number, which stands for those that are missing
    data[..., 12:20, 12:20] = torch.nan
    fine = Image(data, np.eye(4))
    coarse = Image(torch.zeros(1, 1, 8, 8), np.diag([4.0, 4.0, 1.0, 1.0]))
    seen = as_coarse_as(coarse, fine)
    beside = seen.data[..., 8:24, 8:24][fine.valid[..., 8:24, 8:24]]
    torch.testing.assert_close(beside, torch.full_like(beside, 700.0))
    assert torch.equal(seen.valid, fine.valid)


def test_a_field_that_leaves_nothing_to_compare_is_refused(tmp_path):
    u = torch.full((1, 2, *SHAPE), 1000.0)
    with pytest.raises(ValueError, match="by the displacement no voxel of the second lies within"):
        register(MOVING, FIXED, network=Given(u), similarity="ncc")


# what a registration sees of the images


def test_percentiles_are_those_of_the_mask():
    """A hot spot outside the mask took all the contrast: nothing moved."""
    mask = replace(FIXED, data=torch.ones(1, 1, *SHAPE, dtype=torch.uint8))
    mask.data[..., :6, :] = 0
    hot = [replace(i, data=i.data.clone()) for i in (MOVING, FIXED)]
    for image in hot:
        image.data[..., :4, :] = 1e5
    plain, found = (prepare(*pair, mask) for pair in ((MOVING, FIXED), hot))
    for name in ("moving_values", "fixed_values"):
        kept = getattr(plain, name)[mask.data > 0]
        assert torch.equal(getattr(found, name)[mask.data > 0], kept) and kept.std() > 0.1


def test_percentiles_of_the_moving_image_are_those_of_its_part_in_the_fixed_grid():
    """A larger field of view: what lies outside the fixed grid has no say."""
    larger = torch.nn.functional.pad(MOVING.data, (0, 0, 20, 0), value=1e4)
    affine = MOVING.affine.copy()
    affine[:3, 3] -= 20 * affine[:3, 0]
    found = prepare(Image(larger, affine), FIXED)
    torch.testing.assert_close(found.moving_values, prepare(MOVING, FIXED).moving_values)


def test_a_window_stands_for_the_percentiles_of_both():
    values = Normalization(window=(10, 60))
    pair = prepare(MOVING, FIXED, normalization=values)
    torch.testing.assert_close(pair.moving_values, ((MOVING.data - 10) / 50).clamp(0, 1))
    torch.testing.assert_close(pair.fixed_values, ((FIXED.data - 10) / 50).clamp(0, 1))
    with pytest.raises(ValueError, match=r"window must be two finite numbers, low < high"):
        Normalization(window=(3, 3))


def test_the_moving_mask_goes_with_the_moving_image():
    shown = replace(MOVING, data=torch.ones(1, 1, *SHAPE, dtype=torch.uint8))
    shown.data[..., :12, :] = 0
    u = torch.zeros(1, 2, *SHAPE)
    u[:, 0] = -5
    pair = prepare(MOVING, FIXED, moving_mask=shown)
    assert pair.mask[..., :12, :].max() == 0 and pair.mask[..., 12:, :].min() == 1
    mask = pair.compared(u).mask
    assert mask[..., :17, :].max() == 0 and mask[..., 17:, :].min() == 1


def test_masks_and_a_window_on_the_command_line(tmp_path):
    mask = replace(FIXED, data=torch.ones(1, 1, *SHAPE, dtype=torch.uint8))
    mask.data[..., :12, :] = 0
    files = [save(tmp_path / f"{n}.nii.gz", i) for n, i in (("m", MOVING), ("f", FIXED))]
    masks = ["--moving-mask", save(tmp_path / "mm.nii.gz", mask)]
    out = tmp_path / "o"
    assert main(["register", *files, "-o", str(out), *masks, "--window", "0", "150"]) == 0
    assert 0 < json.loads((out / "metrics.json").read_text())["compared_percent"] < 82
    (tmp_path / "p.csv").write_text("moving,fixed,moving_mask\nm.nii.gz,f.nii.gz,mm.nii.gz\n")
    many = tmp_path / "many"
    words = ["register", str(tmp_path / "p.csv"), "-o", str(many), "--window", "0", "150"]
    assert main(words) == 0
    one, other = (
        json.loads(next(folder.rglob("metrics.json")).read_text()) for folder in (out, many)
    )
    assert one["after"] == other["after"]


def test_a_finer_moving_image_is_seen_as_the_fixed_grid_sees():
    """Noise of a finer scanner: averaged for search and metrics, not for what is written."""
    affine = GRID.copy()
    affine[:2, :2] /= 4
    affine[:2, 3] -= 1.5 * np.diag(affine)[:2]
    shape = (4 * SHAPE[0], 4 * SHAPE[1])
    data = phantom(shape, affine, bend=3.0)
    noise = 60 * torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    fine = Image(data + noise, affine)
    averaged = Image(torch.nn.functional.avg_pool2d(fine.data, 4), MOVING.affine)
    raw = Image(resample_to(fine, FIXED), MOVING.affine)
    images = {"fine": fine, "averaged": averaged, "raw": raw}
    results = {n: register(i, FIXED, affine="none", **QUICK) for n, i in images.items()}
    ncc = {name: result.metrics["after"]["ncc"] for name, result in results.items()}
    assert ncc["fine"] > 0.97 and ncc["fine"] - ncc["raw"] > 0.02

    true = register(MOVING, FIXED, levels=2, iterations=60).displacement

    def error(name):
        return (results[name].displacement - true).square().mean().sqrt()

    assert error("fine") < 1.2 * error("averaged") and error("fine") < 0.8 * error("raw")
    expected = resample_to(fine, FIXED, results["fine"].displacement, fill=results["fine"].fill)
    assert torch.equal(results["fine"].values, expected)


# training


def pair_of(folder, moving, fixed):
    names = [folder / f"{n}.nii.gz" for n in ("m", "f")]
    for path, image in zip(names, (moving, fixed), strict=True):
        save(path, image)
    return Pair(*names)


def test_training_refuses_what_register_refuses(tmp_path):
    away = replace(MOVING, affine=MOVING.affine.copy())
    away.affine[0, 3] += 1000
    with pytest.raises(ValueError, match=r"m.nii.gz to f.nii.gz: .*do not overlap"):
        PairDataset([pair_of(tmp_path, away, FIXED)])


def test_training_sees_what_register_sees(tmp_path):
    moving = part(MOVING, 12, 64)
    sample = PairDataset([pair_of(tmp_path, moving, FIXED)]).sample(0)
    pair = prepare(moving, FIXED)
    assert torch.equal(sample.moving, pair.moving_values)
    assert torch.equal(sample.fixed, pair.fixed_values)
    assert torch.equal(sample.mask, pair.mask) and sample.mask.min() == 0


def test_what_is_read_again_is_measured_alike(tmp_path):
    pair = prepare(part(MOVING, 12, 64), FIXED)
    result = register(pair.moving, FIXED, **QUICK)
    write_registration(result, tmp_path, report=False)
    again = read_registration(PairImages(pair.moving, FIXED), tmp_path)
    assert torch.equal(again.mask, result.mask)
    torch.testing.assert_close(again.compared.after, result.compared.after, rtol=0, atol=1e-5)
