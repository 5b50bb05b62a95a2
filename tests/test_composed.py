"""Composed steps, with which levels of volumes begin (diffreg.registration.composed)."""

import numpy as np
import pytest
import torch
from fields.drawn import smooth

import diffreg
from diffreg.fields import fold_certificate
from diffreg.losses import Objective, Weights
from diffreg.ops import warp
from diffreg.registration.composed import composed, gaussian
from diffreg.registration.terms import value_and_gradient_of
from diffreg.registration.variational import register_variational

SIZE = (24, 20, 22)
ALONE = Weights(1, 0, 0, 0)
APART = np.array([3.0, 2.0, 3.0])  # mm


def blob(size=SIZE, spread=4.0):
    """A volume (1, 1, *S) of a few blobs."""
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    image = torch.zeros(size)
    for middle in ((0.35, 0.4, 0.5), (0.65, 0.6, 0.4), (0.5, 0.3, 0.7)):
        apart = [x - m * (n - 1) for x, m, n in zip(places, middle, size, strict=True)]
        image += torch.exp(-sum(x**2 for x in apart) / (2 * spread**2))
    return (image / image.max())[None, None]


FIXED = blob()
MOVING = warp(FIXED, 1.5 * torch.sin(smooth(SIZE, 1.5, 3)))
PULL = value_and_gradient_of(Objective("ncc", ALONE), MOVING, FIXED)


def test_steps_lead_to_the_fixed_image_without_a_fold():
    start = torch.zeros(1, 3, *SIZE)
    found = composed(PULL, start, 30, (1, 1, 1))
    assert PULL(found)[0] < 0.4 * PULL(start)[0]
    assert fold_certificate(found).folded_cells == 0
    assert not start.any()  # the caller's is left alone


@pytest.mark.parametrize("size, axis", [((6, 7), 0), ((5, 6, 7), 2)])
def test_gaussian_is_a_convolution_with_a_repeated_border(size, axis):
    field = torch.randn(1, len(size), *size, generator=torch.Generator().manual_seed(0))
    deviations = [1.3 if k == axis else 0.0 for k in range(len(size))]
    kernel = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.3**2))
    rows = field.movedim(2 + axis, -1)
    flat = torch.nn.functional.pad(rows.reshape(1, -1, size[axis]), (4, 4), mode="replicate")[0]
    wanted = torch.nn.functional.conv1d(flat[:, None], (kernel / kernel.sum())[None, None])
    wanted = wanted.reshape(rows.shape).movedim(-1, 2 + axis)
    assert torch.allclose(gaussian(field, deviations), wanted, atol=1e-6)
    assert gaussian(field, [0.04] * len(size)) is field  # too little to do anything


def test_a_thick_slice_is_smoothed_across_less():
    """In mm the smoothing is the same along all axes."""
    peak = torch.zeros(1, 3, 15, 15, 15)
    peak[..., 7, 7, 7] = 1
    gradients = iter([(torch.tensor(1.0), peak.clone()), (torch.tensor(0.0), peak)])
    u = composed(lambda _: next(gradients), torch.zeros_like(peak), 1, (1, 1, 4))[0, 0].abs()
    assert u[7, 7, 7] > u[10, 7, 7] > 0.05 and torch.isclose(u[10, 7, 7], u[7, 10, 7])
    assert u[7, 7, 10] == 0


def test_steps_that_gain_nothing_are_left():
    """A step is a voxel long however small its gradient: rounding is no reason to move."""
    noise = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    start = torch.zeros_like(noise)
    for worse in (1.0, 2.0):
        values = iter([torch.tensor(1.0)] * 3 + [torch.tensor(worse)])
        assert composed(lambda _, v=values: (next(v), 1e-9 * noise), start, 3, (1, 1, 1)) is start
    assert composed(lambda u: (u.sum(), torch.zeros_like(u)), start, 3, (1, 1, 1)) is start


def test_a_volume_on_itself_stays():
    pull = value_and_gradient_of(Objective("ncc", ALONE), FIXED, FIXED)
    start = torch.zeros(1, 3, *SIZE)
    assert composed(pull, start, 5, (1, 1, 1)) is start


def falling(gradient):
    """What falls whatever is done, with a gradient of its own."""
    values = iter(torch.arange(1000.0, 0, -1))
    return lambda u: (next(values), gradient(u))


def test_a_step_is_composed_and_not_added():
    """u(p + d) + d is .1 d more of a ramp of .1 a voxel."""
    ramp = torch.zeros(1, 2, 24, 16)
    ramp[0, 0] = 0.1 * torch.arange(24.0)[:, None]
    down = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    moved = composed(falling(lambda u: down.expand_as(u).clone()), ramp, 1, (1, 1))
    assert torch.allclose(moved[0, 0, 8:16], ramp[0, 0, 8:16] - 1.1, atol=1e-5)


def test_the_whole_is_smoothed_after_a_step():
    start = torch.randn(1, 2, 12, 10, generator=torch.Generator().manual_seed(3)) / 8
    found = composed(falling(torch.zeros_like), start, 2, (1, 1))
    wanted = gaussian(gaussian(start, [0.5] * 2), [0.5] * 2)
    assert torch.allclose(found, wanted, atol=1e-6) and not torch.equal(found, start)


def test_what_folds_is_smoothed_until_it_does_not():
    """Rarely a composed field: so from one that folds."""
    start = 4 * torch.randn(1, 2, 24, 20, generator=torch.Generator().manual_seed(3))
    assert fold_certificate(gaussian(start, [0.5] * 2)).folded_cells > 0
    found = composed(falling(torch.zeros_like), start, 1, (1, 1))
    assert found is not start and found.any()
    assert fold_certificate(found).folded_cells == 0


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_the_scale_of_a_gradient_does_not_count(factor):
    """Its square is beyond single precision."""
    (usual, scaled), start = (
        [
            composed(
                lambda u, f=f: (f * PULL(u)[0], f * PULL(u)[1]),
                torch.zeros(1, 3, *SIZE),
                4,
                3 * (1,),
            )
            for f in (1.0, factor)
        ],
        torch.zeros(1, 3, *SIZE),
    )
    assert torch.allclose(usual, scaled, atol=1e-4) and not torch.equal(usual, start)


def seen(monkeypatch, *images, **options):
    """What `register_variational` gives to `composed`, level by level."""
    calls = []

    def record(similarity, u, count, spacing, report):
        calls.append((similarity, u, count, list(spacing)))
        return u

    monkeypatch.setattr("diffreg.registration.variational.composed", record)
    register_variational(*images, iterations=1, **options)
    return calls


def test_a_level_says_its_own_voxels(monkeypatch):
    """Of thick slices only the plane gets coarser."""
    images = [blob((40, 36, 8), spread) for spread in (6.0, 8.0)]
    objective = Objective("ncc", spacing=(1.0, 1.0, 3.0))
    calls = seen(monkeypatch, *images, objective, levels=2)
    assert [call[2:] for call in calls] == [(50, [2, 2, 3]), (10, [1, 1, 3])]


def test_the_similarity_alone_is_followed_with_mask_and_channels(monkeypatch):
    masked = torch.zeros(1, 2, *SIZE)
    masked[:, 0, 4:], masked[:, 1, :, 5:] = 1, 1
    images = [torch.cat([image, 1 - image**2], 1) for image in (MOVING, FIXED)]
    objective = Objective({"ncc": 2.0}, weights=Weights(5, 1, 1, 1))
    ((follow, u, *_),) = seen(
        monkeypatch, *images, objective, levels=1, mask=masked, channels=(1.0, 0.25)
    )
    wild = u + torch.sin(smooth(SIZE, 2.0, 5)).to(u)
    wanted = sum(
        5 * weight * 2 * Objective("ncc", ALONE)(m, f, wild, mask, False).total
        for weight, m, f, mask in zip(
            (1.0, 0.25), *(each.split(1, 1) for each in (*images, masked)), strict=True
        )
    )
    assert torch.allclose(follow(wild)[0], wanted.squeeze(), rtol=0.05)  # by the share that differs


def test_landmarks_are_followed_with_the_images():
    """Points that the images contradict are not left behind by what the images alone say."""
    images = blob((40, 36, 34), 7.0)[0, 0].numpy(), blob((40, 36, 34), 8.0)[0, 0].numpy()
    here = np.array([[12.0, 14, 16], [26, 20, 14], [18, 12, 22]])
    for weight, most in ((1.0, 1.0), (10.0, 0.1)):
        found = diffreg.register(
            *images, affine="none", levels=2, landmarks=(here, here + APART, weight)
        )
        assert found.metrics["objective"]["composed_steps"] == (50, 10)
        assert found.metrics["landmarks"]["after_mm"]["mean"] < most


def test_more_is_found_than_without():
    """Of a few iterations, so that what the steps bring is seen."""
    few = {"levels": 1, "iterations": 3}
    reached = [
        PULL(register_variational(MOVING, FIXED, Objective("ncc"), **few, composed_steps=steps))[0]
        for steps in (0, None, 20)
    ]
    assert reached[0] > reached[1] > reached[2]


def test_what_has_no_weight_does_not_pull():
    energies = Objective("ncc", weights=Weights(0, 1, 1, 1))
    assert not register_variational(MOVING, FIXED, energies, levels=1, iterations=1).any()


def test_progress_counts_the_steps():
    calls = []
    register_variational(
        MOVING, FIXED, iterations=4, composed_steps=3, progress=lambda *call: calls.append(call)
    )
    assert [done for done, _ in calls[:3]] == [1, 2, 3]
    assert {most for _, most in calls} == {7}
    assert calls[-1][0] == 7


def test_slices_begin_without():
    images = MOVING[..., 10], FIXED[..., 10]
    usual = register_variational(*images, iterations=5)
    assert torch.equal(usual, register_variational(*images, iterations=5, composed_steps=0))
    assert not torch.equal(usual, register_variational(*images, iterations=5, composed_steps=5))


def test_a_start_is_gone_on_from_without():
    start = torch.zeros(1, 3, *SIZE)
    usual, none, some = (
        register_variational(MOVING, FIXED, iterations=2, start=start, composed_steps=steps)
        for steps in (None, 0, 5)
    )
    assert torch.equal(usual, none) and not torch.equal(usual, some)


def test_what_was_done_is_told():
    images = MOVING[0, 0].numpy(), FIXED[0, 0].numpy()
    done = diffreg.register(*images, affine="none", levels=1, iterations=3, composed_steps=(4,))
    assert done.metrics["objective"]["composed_steps"] == 4
    usual = diffreg.register(*images, affine="none", levels=1, iterations=3)
    assert usual.metrics["objective"]["composed_steps"] == 10
    assert usual.metrics["folded_percent"] == 0
