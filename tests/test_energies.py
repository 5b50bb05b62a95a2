"""Curvature and total variation: goldens, spacing, gradients, borders, in 2-D and 3-D."""

import golden
import numpy as np
import pytest
import torch
from cases import uniform
from scipy import ndimage

from diffreg.fields import identity_grid
from diffreg.losses import curvature_energy, total_variation

every_energy = pytest.mark.parametrize("energy", [curvature_energy, total_variation])
both_sizes = pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)], ids=str)


def drawn(size, samples=1):
    return uniform((samples, len(size), *size), torch.float64)


def test_golden_of_curvature():
    value = curvature_energy(golden.displacement())
    assert value.item() == pytest.approx(0.481041242687, abs=1e-12)


def test_golden_of_total_variation():
    value = total_variation(golden.displacement(), beta=0.01)
    assert value.item() == pytest.approx(0.88552301933, abs=1e-11)


@pytest.mark.parametrize("u", [golden.displacement(), golden.volume_displacement()], ids=["2", "3"])
def test_spacing_and_borders_by_scipy(u):
    """Second differences by ndimage, of which the interior is kept; first ones by numpy."""
    lengths = (1.5, 0.8, 2.0)[: u.ndim - 2]
    curvature = variation = 0.0
    for component, own in zip(u[0].numpy(), lengths, strict=True):
        second = [
            ndimage.correlate1d(component, [1, -2, 1], axis=k) * own / length**2
            for k, length in enumerate(lengths)
        ]
        interior = (slice(1, -1),) * len(lengths)
        curvature += np.square(sum(second)[interior]).mean()
        first = [
            np.diff(component, axis=k, append=component.take([-1], k)) * own / length
            for k, length in enumerate(lengths)
        ]
        variation += (np.sqrt(np.square(first).sum(0) + 0.3**2) - 0.3).mean()
    assert curvature_energy(u, lengths).item() == pytest.approx(curvature, rel=1e-12)
    assert total_variation(u, 0.3, lengths).item() == pytest.approx(variation, rel=1e-12)


@both_sizes
def test_affine_maps_have_no_curvature(size):
    matrix = uniform((len(size), len(size)), torch.float64)
    u = torch.einsum("kl,nl...->nk...", matrix, identity_grid(size, torch.float64)) + 0.7
    assert curvature_energy(u).item() == pytest.approx(0, abs=1e-28)
    bump = u.clone()
    bump[(0, 0, *(n // 2 for n in size))] += 1
    assert curvature_energy(bump).item() > 1


@both_sizes
@every_energy
def test_gradients(energy, size):
    field = drawn(size).requires_grad_()
    assert torch.autograd.gradcheck(energy, (field,))
    assert torch.autograd.gradgradcheck(energy, (field,))


@both_sizes
@every_energy
def test_vmap_is_a_loop_over_the_samples(energy, size):
    fields = torch.stack([drawn(size, 2), 2 * drawn(size, 2)])
    looped = torch.stack([energy(field) for field in fields])
    torch.testing.assert_close(torch.func.vmap(energy)(fields), looped)


@every_energy
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 4), (0, 3), (2, 2), (1, 1, 1), (1, 4, 1), (2, 2, 2), (0, 3, 4)], ids=str
)
def test_a_constant_field_costs_nothing_on_any_grid(energy, size):
    field = torch.full((2, len(size), *size), 3.0, requires_grad=True)
    values = energy(field)
    assert values.tolist() == [0.0, 0.0]
    values.sum().backward()
    assert not field.grad.any()


@every_energy
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_plane_is_an_image(energy, axis):
    volume = drawn((6, 7, 5)).narrow(2 + axis, 0, 1)
    others = [k for k in range(3) if k != axis]
    lengths = [0.7, 2.0, 1.3]
    flat = volume[:, others].squeeze(2 + axis)
    found = energy(volume, spacing=lengths)
    assert torch.equal(found, energy(flat, spacing=[lengths[k] for k in others]))


@every_energy
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_row_is_a_line(energy, axis):
    """Whatever the displacement does across it: of an image of one row, and of the line itself."""
    shape = [1, 1, 1]
    shape[axis] = 5
    volume, lengths = drawn(shape), [0.7, 2.0, 1.3]
    line = volume[:, axis].reshape(1, 1, 1, 5)
    row = torch.cat([torch.zeros_like(line), line], 1)
    found = energy(volume, spacing=lengths)
    torch.testing.assert_close(found, energy(row, spacing=[1.0, lengths[axis]]))
    across = volume.clone()
    across[:, [k for k in range(3) if k != axis]] += 3.0 * drawn(shape)[:, :2]
    assert torch.equal(found, energy(across, spacing=lengths))


def test_an_axis_of_two_voxels_has_no_curvature():
    """It is left out of the Laplacian; the mean is over both of its voxels."""
    planes = drawn((2, 5, 6))
    expected = 0
    for plane in planes.unbind(2):
        for component in plane.unbind(1):  # one at a time, beside a component that costs nothing
            expected += curvature_energy(torch.stack([component, 0 * component], 1)) / 2
    torch.testing.assert_close(curvature_energy(planes), expected)


def test_one_length_for_all_scales_second_derivatives_only():
    for field in (golden.displacement(), golden.volume_displacement()):
        same = curvature_energy(field, spacing=2.0)
        torch.testing.assert_close(same, curvature_energy(field) / 4)
        torch.testing.assert_close(total_variation(field, spacing=2.0), total_variation(field))


def test_lengths_weigh_components_and_axes():
    # A shear u_1 = i_0: its derivative along axis 0 is 1 voxel of length 3 per voxel of length 1.
    field = torch.zeros(1, 2, 5, 4, dtype=torch.float64)
    field[0, 1] = torch.arange(5.0).reshape(5, 1)
    expected = ((3.0**2 + 0.01**2) ** 0.5 - 0.01) * 4 / 5  # four of the five rows have a difference
    value = total_variation(field, beta=0.01, spacing=(1.0, 3.0))
    torch.testing.assert_close(value, torch.tensor([expected], dtype=torch.float64))


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta must be positive and finite, got 0"):
        total_variation(torch.zeros(1, 2, 4, 4), beta=0)


@every_energy
def test_a_spacing_has_one_length_an_axis(energy):
    with pytest.raises(ValueError, match=r"spacing must have 3 lengths, one an axis, got \[1.0, 2"):
        energy(torch.zeros(1, 3, 4, 4, 4), spacing=(1.0, 2.0))


def test_half_types_are_computed_in_float32():
    field = golden.displacement(torch.float32).to(torch.bfloat16)
    assert torch.equal(curvature_energy(field), curvature_energy(field.float()))
