"""Curvature and total variation: goldens, spacing, gradients, borders."""

import golden
import pytest
import torch

from diffreg.losses import curvature_energy, total_variation


def test_golden_of_curvature():
    value = curvature_energy(golden.displacement())
    assert value.item() == pytest.approx(0.504128748955, abs=1e-12)


def test_golden_of_total_variation():
    value = total_variation(golden.displacement(), beta=0.01)
    assert value.item() == pytest.approx(0.88552301933, abs=1e-11)


@pytest.mark.parametrize("energy", [curvature_energy, total_variation])
def test_gradients(energy):
    field = golden.displacement()[:, :, :4, :5].clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, (field,))
    assert torch.autograd.gradgradcheck(energy, (field,))


@pytest.mark.parametrize("energy", [curvature_energy, total_variation])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (0, 3)], ids=str)
def test_a_constant_field_costs_nothing_on_any_grid(energy, size):
    assert energy(torch.full((2, 2, *size), 3.0)).tolist() == [0.0, 0.0]


def test_one_length_for_all_scales_second_derivatives_only():
    field = golden.displacement()
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


def test_half_types_are_computed_in_float32():
    field = golden.displacement(torch.float32).to(torch.bfloat16)
    assert torch.equal(curvature_energy(field), curvature_energy(field.float()))
