"""Several channels a side: each has a similarity of its own, on its own grid."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from test_registration import FIXED, GRID, MOVING, QUICK, SHAPE, phantom, stored

from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.normalization import Normalization
from diffreg.data.prepare import PairImages, prepare
from diffreg.losses import SIMILARITIES, Objective
from diffreg.registration import register, register_variational
from diffreg.registration.channels import Channel, stacked
from diffreg.registration.terms import structured_channels, value_and_gradient_of
from diffreg.registration.whiteness import structured

pytestmark = pytest.mark.usefixtures("one_thread")
SQUARES = {"similarity": "ssd", "affine": "none", **QUICK}


def moved(image, along):
    """The image so many voxels further along its first axis."""
    affine = image.affine.copy()
    affine[:3, 3] += along * affine[:3, 0]
    return replace(image, affine=affine)


@pytest.mark.parametrize(
    ("also", "error", "message"),
    [
        ([(MOVING, FIXED)], TypeError, r"also must be a list of \(moving, fixed, weight\)"),
        ((MOVING, FIXED, 1.0), TypeError, "also must be a list of .*got Image for entry 1"),
        ([(MOVING, FIXED, 0)], ValueError, "the weight of channel 1 must be a finite .*got 0"),
        ([(MOVING, FIXED, np.nan)], ValueError, "must be a finite number > 0, got nan"),
        ([(MOVING, FIXED, "1")], ValueError, "must be a finite number > 0, got '1'"),
        ([(MOVING, None, 1)], TypeError, "channel 1, fixed must be a path"),
        ([(MOVING, np.ones((3, 4)), 1)], ValueError, "channel 1, fixed is an array of shape"),
        ([(MOVING, FIXED, 1), (MOVING, "no.nii", 1)], FileNotFoundError, "no.nii does not exist"),
        ([(np.zeros(SHAPE), FIXED, 1)], ValueError, "^channel 1, moving is 0 everywhere"),
        ([(MOVING, np.zeros(SHAPE), 1)], ValueError, "^channel 1, fixed is 0 everywhere"),
        ([(MOVING, replace(FIXED, kind="png"), 1)], ValueError, "do not belong together"),
        ([(MOVING, moved(FIXED, 500.0), 1)], ValueError, "^channel 1, .* do not overlap"),
    ],
)
def test_channels_that_are_none(also, error, message):
    with pytest.raises(error, match=message):
        register(MOVING, FIXED, also=also, **SQUARES)


def test_a_network_takes_one_image_a_side():
    with pytest.raises(ValueError, match="also is of the variational method"):
        register(MOVING, FIXED, torch.nn.Identity(), also=[(MOVING, FIXED, 1)])


def images(size, channels, seed=0):
    torch.manual_seed(seed)
    return torch.rand(2, 1, channels, *size, dtype=torch.float64)


def displaced(size):
    torch.manual_seed(1)
    return torch.rand(1, len(size), *size, dtype=torch.float64) - 0.5


@pytest.mark.parametrize("size", [(12, 13), (9, 10, 11)])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_one_channel_is_what_it_was_to_the_bit(name, size):
    moving, fixed = images(size, 1)
    objective, u = Objective(name, (3, 1, 2, 1)), displaced(size)
    expected = objective.value_and_gradient_of(moving, fixed)(u)
    for weights in (None, (1.0,)):
        found = value_and_gradient_of(objective, moving, fixed, None, weights)(u)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("size", [(12, 13), (9, 10, 11)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_sum_by_hand(size, masked):
    moving, fixed = images(size, 3)
    mask = (torch.rand(1, 3, *size) > 0.2).double() if masked else None
    objective, u = Objective({"ncc": 1, "lncc": 0.2}, (3, 1, 2, 1)), displaced(size)
    weights = (1.0, 0.5, 2.0)
    value, gradient = value_and_gradient_of(objective, moving, fixed, mask, weights)(u)
    u.requires_grad_()
    by_hand = torch.zeros(())
    for k, weight in enumerate(weights):
        part = None if mask is None else mask[:, k : k + 1]
        terms = objective(moving[:, k : k + 1], fixed[:, k : k + 1], u, part)
        by_hand = by_hand + 3 * weight * terms.similarity[0]
    energies = terms.diffusion + 2 * terms.bending + terms.determinant
    by_hand = by_hand + energies[0]
    torch.testing.assert_close(value, by_hand.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, u)[0])


def test_a_channel_of_noise_alone_has_no_weight():
    torch.manual_seed(0)
    noise = torch.rand(2, 1, 1, *SHAPE)
    moving, fixed = (torch.cat([a / 200, b], 1) for a, b in zip(
        (MOVING.data, FIXED.data), noise, strict=True))  # fmt: skip
    mask, share, weights = structured_channels(moving, fixed, None, (1.0, 2.0))
    assert share == 1 and weights[1] == 0
    own, its_share = structured(moving[:, :1], fixed[:, :1])
    assert own is None and bool(mask[:, 0].all()) and weights[0] == its_share == 1
    assert mask[:, 1].mean() < 0.1
    masks = torch.ones(1, 2, *SHAPE)
    masks[:, 0] = 0
    nothing = structured_channels(moving, fixed, masks, (1.0, 2.0))
    assert nothing[1:] == (0, [0, 0])


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0), (1.0, np.inf)])
def test_weights_that_do_not_fit(weights):
    moving, fixed = images((16, 16), 2)
    with pytest.raises(ValueError, match="channels must be 2 weights > 0, one for each channel"):
        register_variational(moving, fixed, channels=weights)


def test_masks_that_do_not_fit():
    moving, fixed = images((16, 16), 2)
    with pytest.raises(ValueError, match="mask must have 1 channel or those of fixed, 2, got 3"):
        register_variational(moving, fixed, mask=torch.ones(1, 3, 16, 16), channels=(1, 1))
    with pytest.raises(ValueError, match=r"mask must be \(N, 1, \*S\)"):
        register_variational(moving, fixed, mask=torch.ones(1, 2, 16, 16))


def half(bend, left):
    """What of the phantom is on one side of its middle: nothing of the rest."""
    data = phantom(SHAPE, GRID, bend=bend)
    data[:, :, 32:] *= not left
    data[:, :, :32] *= left
    return Image(data, GRID)


def apart(result):
    """Between the whole phantoms, in parts of what it was."""
    after = torch.from_numpy(np.asarray(result.apply(MOVING).data)) - FIXED.data
    return float(after.square().mean() / (MOVING.data - FIXED.data).square().mean())


def test_a_channel_shows_what_the_other_does_not():
    left, right = ((half(3.0, side), half(0.0, side)) for side in (True, False))
    one = register(*left, **SQUARES)
    both = register(*left, also=[(*right, 1.0)], **SQUARES)
    assert apart(both) < 0.1 < 0.2 < apart(one)
    said = both.metrics["objective"]["channels"]
    assert said == [{"moving": "channel 1, moving", "fixed": "channel 1, fixed", "weight": 1.0}]
    assert "channels" not in one.metrics["objective"]


def test_the_same_images_again_are_twice_the_similarity():
    twice = register(MOVING, FIXED, also=[(MOVING, FIXED, 1.0)], weights=(30, 1, 30, 3), **SQUARES)
    once = register(MOVING, FIXED, weights=(60, 1, 30, 3), **SQUARES)
    torch.testing.assert_close(twice.displacement, once.displacement, atol=2e-3, rtol=0)


@pytest.mark.parametrize("swap", [False, True])
def test_a_channel_lies_where_its_header_says(swap):
    left, right = ((half(3.0, side), half(0.0, side)) for side in (True, False))
    own = register(*left, also=[(*right, 1.0)], both_ways=True, **SQUARES)
    turned = [stored(image, swap, -1, 1) for image in right]
    other = register(*left, also=[(*turned, 1.0)], both_ways=True, **SQUARES)
    torch.testing.assert_close(other.displacement, own.displacement, atol=1e-3, rtol=0)
    name = "inverse_consistency_mm"
    assert other.metrics[name] == pytest.approx(own.metrics[name], abs=1e-3)


def test_arrays_lie_where_their_image_does_and_labels_will_do():
    moving, fixed = ((image.data[0, 0] > 60).numpy() for image in (MOVING, FIXED))
    result = register(MOVING, FIXED, also=[(moving, fixed, 0.5)], **SQUARES)
    assert result.metrics["after"]["ncc"] > 0.99
    warped = result.apply(moving.astype(np.uint8))
    overlap = 2 * (warped & fixed).sum() / (warped.sum() + fixed.sum())
    assert overlap > 0.97


def test_where_a_channel_does_not_reach_only_the_others_count():
    """A channel of the lower part, whose fixed side ends: its edge must draw nothing."""
    cut = moved(replace(FIXED, data=FIXED.data[:, :, 24:].contiguous()), 24)
    channel = Channel.checked(1, (MOVING, cut, 1.0), PairImages(MOVING, FIXED))
    pair = prepare(MOVING, FIXED)
    mask = stacked(pair, [channel.prepared(pair)]).mask
    assert bool(mask[:, 0].all() and mask[:, 1, 24:].all()) and not mask[:, 1, :24].any()
    result = register(MOVING, FIXED, also=[(MOVING, cut, 1.0)], **SQUARES)
    alone = register(MOVING, FIXED, **SQUARES)
    assert result.metrics["after"]["relative_ssd"] < 1.2 * alone.metrics["after"]["relative_ssd"]


def test_a_window_is_of_the_pair_alone():
    """A channel in other units, outside of the window."""
    other = [Image(1000 + image.data, GRID) for image in (MOVING, FIXED)]
    window = Normalization(window=(0, 200))
    result = register(MOVING, FIXED, also=[(*other, 1.0)], normalization=window, **SQUARES)
    assert result.metrics["after"]["ncc"] > 0.99


def test_volumes_with_a_moved_start():
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(
        torch.rand(2, 1, 5, 6, 5), (18, 20, 17), mode="trilinear"
    )
    grid = np.diag([2.0, 1.5, 2.0, 1.0])
    fixed = [Image(part[None], grid) for part in noise]
    shift = np.eye(4)
    shift[0, 3] = 4.0
    moving = [Image(image.data, shift @ grid) for image in fixed]
    known = {"affine": shift, "similarity": "ssd", "levels": 1, "iterations": 4}
    result = register(moving[0], fixed[0], also=[(moving[1], fixed[1], 1.0)], **known)
    assert result.displacement.abs().max() < 1e-3  # the start has both channels in place


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for name, bend in (("m", 3.0), ("f", 0.0)):
        for channel in (0, 1):
            data = half(bend, channel == 0).data[0, 0].numpy()
            nib.save(nib.Nifti1Image(data, GRID), f"{name}{channel}.nii.gz")
    pair = ("register", "m0.nii.gz", "f0.nii.gz", "-o", "out")
    other = ("--also", "m1.nii.gz", "f1.nii.gz")
    for words, message in (
        ((*other, "x"), "--also: WEIGHT must be a finite number > 0, got 'x'"),
        (("--also", "m1.nii.gz", "no.nii", "1"), "no.nii does not exist"),
        ((*other, "1", "--checkpoint", "lunet-cardiac-mr"), "--also is of the variational method"),
    ):
        assert main([*pair, *words]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    (tmp_path / "pairs.csv").write_text("moving,fixed\nm0.nii.gz,f0.nii.gz\n")
    assert main(["register", "pairs.csv", "-o", "out", *other, "1"]) == 2
    assert "--also is of one pair: leave it out" in capsys.readouterr().err
    assert main([*pair, *other, "0.5", *other, "0.25"]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())["objective"]["channels"]
    assert [channel["weight"] for channel in found] == [0.5, 0.25]
    assert found[0]["moving"] == "m1.nii.gz"
    assert "m1.nii.gz to f1.nii.gz, weight 0.25" in (tmp_path / "out/report.html").read_text()
