"""Composed steps, with which levels of volumes begin (diffreg.registration.composed)."""

import pytest
import torch
from fields.drawn import smooth

import diffreg
from diffreg.fields import fold_certificate
from diffreg.losses import Objective, Weights
from diffreg.ops import warp
from diffreg.registration.composed import blurred, composed
from diffreg.registration.terms import value_and_gradient_of
from diffreg.registration.variational import register_variational

SIZE = (24, 20, 22)
ALONE = Weights(1, 0, 0, 0)


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
    assert PULL(found)[0] < 0.3 * PULL(start)[0]
    assert fold_certificate(found).folded_cells == 0
    assert not start.any()  # the caller's is left alone


@pytest.mark.parametrize("size, axis", [((6, 7), 0), ((5, 6, 7), 2)])
def test_blurred_is_a_convolution_with_a_repeated_border(size, axis):
    field = torch.randn(1, len(size), *size, generator=torch.Generator().manual_seed(0))
    deviations = [1.3 if k == axis else 0.0 for k in range(len(size))]
    kernel = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.3**2))
    rows = field.movedim(2 + axis, -1)
    flat = torch.nn.functional.pad(rows.reshape(1, -1, size[axis]), (4, 4), mode="replicate")[0]
    wanted = torch.nn.functional.conv1d(flat[:, None], (kernel / kernel.sum())[None, None])
    wanted = wanted.reshape(rows.shape).movedim(-1, 2 + axis)
    assert torch.allclose(blurred(field, deviations), wanted, atol=1e-6)
    assert blurred(field, [0.04] * len(size)) is field  # too little to do anything


def test_a_thick_slice_is_smoothed_across_less():
    """In mm the smoothing is the same along all axes."""
    peak = torch.zeros(1, 3, 15, 15, 15)
    peak[..., 7, 7, 7] = 1
    gradients = iter([(torch.tensor(1.0), peak.clone()), (torch.tensor(0.0), peak)])
    u = composed(lambda _: next(gradients), torch.zeros_like(peak), 1, (1, 1, 4))[0, 0].abs()
    assert u[7, 7, 7] > u[10, 7, 7] == u[7, 10, 7] > 0.05
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
    moved = register_variational(FIXED, FIXED, levels=2)
    assert moved.abs().max() < 1e-3


def test_more_is_found_than_without():
    """Of a few iterations, so that what the steps bring is seen."""
    few = {"levels": 1, "iterations": 3}
    reached = [
        PULL(register_variational(MOVING, FIXED, Objective("ncc"), **few, steps=steps))[0]
        for steps in (0, None, 20)
    ]
    assert reached[0] > reached[1] > reached[2]


def test_what_has_no_weight_does_not_pull():
    energies = Objective("ncc", weights=Weights(0, 1, 1, 1))
    assert not register_variational(MOVING, FIXED, energies, levels=1, iterations=1).any()


def test_slices_begin_without():
    images = MOVING[..., 10], FIXED[..., 10]
    usual = register_variational(*images, iterations=5)
    assert torch.equal(usual, register_variational(*images, iterations=5, steps=0))
    assert not torch.equal(usual, register_variational(*images, iterations=5, steps=5))


def test_a_start_is_gone_on_from_without():
    start = torch.zeros(1, 3, *SIZE)
    usual, none, some = (
        register_variational(MOVING, FIXED, iterations=2, start=start, steps=steps)
        for steps in (None, 0, 5)
    )
    assert torch.equal(usual, none) and not torch.equal(usual, some)


def test_what_was_done_is_told():
    images = MOVING[0, 0].numpy(), FIXED[0, 0].numpy()
    done = diffreg.register(*images, affine="none", levels=1, iterations=3, steps=(4,))
    assert done.metrics["objective"]["steps"] == 4
    usual = diffreg.register(*images, affine="none", levels=1, iterations=3)
    assert usual.metrics["objective"]["steps"] == 5
    assert usual.metrics["folded_percent"] == 0
