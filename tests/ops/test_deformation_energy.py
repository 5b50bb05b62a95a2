import itertools
import math

import golden
import pytest
import torch
from cases import Calls, uniform

from diffreg.ops import (
    deformation_energy,
    deformation_energy_reference,
    jacobian_determinant,
    registration_objective,
)
from diffreg.ops.deformation_energy import penalty_reference

both = pytest.mark.parametrize("function", [deformation_energy, deformation_energy_reference])
# Twelve printed digits in double; single keeps six.
dtypes = pytest.mark.parametrize(
    "dtype, digits", [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=["double", "single"]
)
PENALTIES = ("hyperelastic", "log2", "hinge", "relu")


def stretched(J, dtype=torch.float64) -> torch.Tensor:
    """One cell whose four corners have the determinant J (a number or a tensor)."""
    u = torch.zeros(1, 2, 2, 2, dtype=dtype)
    along = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=dtype)
    return torch.stack([(J - 1) * along, u[0, 1]])[None]


def psi(J, penalty="hyperelastic", threshold=None, function=deformation_energy) -> float:
    return function(stretched(J), None, penalty, threshold).determinant.item()


# Values


@both
def test_by_hand(function):
    # One component, one row: u = 0, 1, 3. Differences 1, 2; second difference 1; J = 2, 3.
    u = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    u[0, 1] = torch.tensor([0.0, 1.0, 3.0])
    energy = function(u)
    assert energy.diffusion.item() == 2.5  # (1 + 4) / 2
    assert energy.bending.item() == 1.0
    # psi(2) = 1/4 on the left cell, psi(3) = 16/9 on the right
    assert energy.determinant.item() == pytest.approx((1 / 4 + 16 / 9) / 2, rel=1e-15)


@both
def test_mixed_derivative_by_hand(function):
    u = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    u[0, 0, 1, 1] = 1  # d_01 u_0 = 1, counted for both orders
    assert function(u).bending.item() == 2.0
    assert function(u).diffusion.item() == 1.0  # 1/2 along each axis


@both
@dtypes
@pytest.mark.parametrize(
    "spacing, diffusion, bending",
    [
        (None, 0.568699199134, 0.484931064063),
        ((1, 2), 0.7560867586, 0.349291307057),
    ],
)
def test_golden_smoothness(function, dtype, digits, spacing, diffusion, bending):
    energy = function(golden.displacement(dtype), spacing)
    assert energy.diffusion.item() == pytest.approx(diffusion, rel=digits)
    assert energy.bending.item() == pytest.approx(bending, rel=digits)


@both
@dtypes
@pytest.mark.parametrize(
    "factor, value, gradient",
    [(1, 0.792890799759, 2.10551680699), (2, 41.585663203, 19.5276278891)],
)
@pytest.mark.parametrize("spacing", [None, (1, 2)])
def test_golden_determinant(function, dtype, digits, factor, value, gradient, spacing):
    u = golden.displacement(dtype, factor).requires_grad_()
    energy = function(u, spacing).determinant
    assert energy.item() == pytest.approx(value, rel=digits)
    energy.backward()
    assert u.grad.norm().item() == pytest.approx(gradient, rel=digits)


@both
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("size", [(8, 10), (1, 5), (20, 1), (33, 17)], ids=str)
def test_identity_costs_nothing(function, penalty, size):
    energy = function(torch.zeros(2, 2, *size), penalty=penalty)
    assert all(torch.equal(e, torch.zeros(2)) for e in energy)


@both
def test_affine_fields_do_not_bend(function):
    grid = torch.stack(torch.meshgrid(torch.arange(18.0), torch.arange(5.0), indexing="ij"))
    M = torch.tensor([[0.25, -0.5], [0.125, 0.75]])  # exact in binary
    assert function(torch.einsum("kl,lij->kij", M, grid)[None]).bending.item() == 0


@both
def test_a_checkerboard_costs(function):
    # Central differences would not see it.
    i, j = torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij")
    u = torch.zeros(1, 2, 6, 7)
    u[0, 0] = ((i + j) % 2).float()
    energy = function(u)
    assert energy.diffusion.item() == 2.0  # 1 along each axis
    assert energy.bending.item() == 4 + 4 + 2 * 4


@both
def test_a_translation_is_free(function):
    energy = function(torch.full((1, 2, 5, 6), 321.5))
    assert [e.item() for e in energy] == [0, 0, 0]


@both
@pytest.mark.parametrize("size", [(2, 6), (6, 2)], ids=str)
def test_an_axis_too_short_for_a_stencil_adds_nothing(function, size):
    u = uniform((1, 2, *size), torch.float64)
    energy = function(u)
    long = 0 if size[0] > size[1] else 1
    second = (torch.diff(u, n=2, dim=2 + long) ** 2).sum(1).mean()
    mixed = torch.diff(torch.diff(u, dim=2), dim=3)
    mixed = 2 * (mixed**2).sum(1).mean() if mixed.numel() else 0
    torch.testing.assert_close(energy.bending[0], second + mixed)


def test_a_long_row_costs_no_digits_in_single_precision():
    # Sums in single precision would be wrong from the fifth digit on.
    u = torch.zeros(1, 2, 2, 200_000)
    u[..., ::2] = 0.1
    exact = deformation_energy_reference(u.double()).diffusion
    assert deformation_energy(u).diffusion.item() == pytest.approx(exact.item(), rel=1e-6)


def test_one_spacing_for_all_axes():
    u = golden.displacement()
    assert torch.equal(deformation_energy(u, 2).bending, deformation_energy(u, (2, 2)).bending)
    # first derivatives have no unit, second ones are per length
    same, half = deformation_energy(u, 1), deformation_energy(u, 2.0)
    torch.testing.assert_close(half.diffusion, same.diffusion)
    torch.testing.assert_close(half.bending, same.bending / 4)


def test_a_field_sampled_twice_as_finely_costs_the_same():
    # u = physical / spacing on a grid twice as fine; the means run over slightly other positions.
    def field(size, h):
        y, x = (h * torch.arange(n, dtype=torch.float64) for n in size)
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([torch.sin(0.05 * y + 0.03 * x), torch.cos(0.04 * x)])[None] * 3 / h

    coarse = deformation_energy(field((101, 81), 1.0), 1.0)
    fine = deformation_energy(field((201, 161), 0.5), 0.5)
    torch.testing.assert_close(fine.diffusion, coarse.diffusion, rtol=0.01, atol=0)
    torch.testing.assert_close(fine.bending, coarse.bending, rtol=0.01, atol=0)


# Penalties


@pytest.mark.parametrize("function", [deformation_energy, deformation_energy_reference])
@pytest.mark.parametrize(
    "penalty, threshold, J, value",
    [
        ("hyperelastic", None, 0.2, 10.24),
        ("hyperelastic", None, 2.0, 0.25),
        ("hyperelastic", None, 0.5, 0.25),
        ("hyperelastic", None, -1.0, 10.24 + 153.6 * 1.2),
        ("hyperelastic", 0.5, 0.0, 0.25 + 0.5 * 3.0),  # psi'(.5) = 2 (-1/8) 1.5 / (1/8) = -3
        ("log2", None, math.e, 1.0),
        ("log2", None, 0.0, math.log(0.01) ** 2 - 2 * math.log(0.01)),
        ("hinge", None, 0.3, 0.0),
        ("hinge", None, -0.3, 0.25),
        ("hinge", 0.5, 0.3, 0.04),
        ("relu", None, 0.3, 0.0),
        ("relu", None, -0.3, 0.3),
    ],
)
def test_penalties_by_hand(function, penalty, threshold, J, value):
    assert psi(J, penalty, threshold, function) == pytest.approx(value, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize(
    "penalty, threshold, J, slope",
    [
        ("hyperelastic", None, 0.2, -153.6),
        ("hyperelastic", None, -1.0, -153.6),
        ("hyperelastic", None, 2.0, 2 * 3 / 8),
        ("hyperelastic", 0.5, 0.0, -3.0),
        ("log2", None, math.e, 2 / math.e),
        ("log2", None, -5.0, 2 * math.log(0.01) / 0.01),
        ("hinge", None, -0.3, -1.0),
        ("hinge", None, 0.3, 0.0),
        ("relu", None, -0.3, -1.0),
        ("relu", None, 0.3, 0.0),
        ("relu", None, 0.0, 0.0),
    ],
)
def test_slopes_of_penalties_by_hand(penalty, threshold, J, slope):
    J = torch.tensor(J, dtype=torch.float64, requires_grad=True)
    deformation_energy(stretched(J), None, penalty, threshold).determinant.sum().backward()
    assert J.grad.item() == pytest.approx(slope, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("penalty", ["hyperelastic", "log2"])
def test_deeper_folds_always_cost_more(penalty):
    # The raw hyperelastic function has a local minimum at J = -1.
    values = [psi(J, penalty) for J in torch.linspace(0.19, -4, 60).tolist()]
    assert all(deeper > before for before, deeper in itertools.pairwise(values))


@pytest.mark.core
@pytest.mark.parametrize("penalty", PENALTIES)
def test_determinants_that_overflow_are_nothing_to_the_other_energies(penalty):
    u = (1e30 * uniform((2, 2, 5, 6), torch.float32)).requires_grad_()  # its products are infinite
    energies = deformation_energy(u, penalty=penalty)
    assert not energies.determinant.isfinite().all()
    (found,) = torch.autograd.grad((energies.diffusion * torch.tensor([1e-30, 0.0])).sum(), u)
    assert found[0].isfinite().all() and found[0].abs().max() > 0.01 and not found[1].any()
    terms = registration_objective(
        *2 * [torch.rand(2, 1, 5, 6)], u, "ssd", (0.0, 1e-30, 0.0, 0.0), penalty=penalty
    )
    (found,) = torch.autograd.grad(terms.total.sum(), u)
    assert found.isfinite().all() and found.abs().max() > 0.01


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_penalty_of_a_cell_is_that_of_its_corners(penalty):
    u = 1.5 * uniform((3, 2, 9, 8), torch.float64)
    expected = penalty_reference(jacobian_determinant(u), penalty).flatten(1).mean(1)
    torch.testing.assert_close(deformation_energy(u, penalty=penalty).determinant, expected)


@both
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_never_hidden(function, penalty, bad):
    u = golden.displacement()
    u[0, 0, 3, 3] = bad
    energy = function(u, penalty=penalty)
    assert not any(e.isfinite().any() for e in energy[:2])
    assert energy.determinant.isnan().all() or math.isinf(bad)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_gradient_of_a_field_with_nan_is_nan_there(penalty):
    u = golden.displacement()
    u[0, 0, 3, 3] = math.nan
    u.requires_grad_()
    deformation_energy(u, penalty=penalty).determinant.backward()
    assert u.grad[0, 0, 3, 3].isnan()


# Gradients


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("spacing", [None, (0.7, 1.9)])
def test_gradcheck(penalty, spacing):
    threshold = 0.3 if penalty != "relu" else None
    u = (1.1 * uniform((2, 2, 4, 5), torch.float64, seed=4)).requires_grad_()
    J = jacobian_determinant(u).detach()
    kink = threshold or 0.0
    assert (J > 1).sum() > 5
    assert ((kink < J) & (J < 1)).sum() > 5
    assert (J < 0).sum() > 5
    assert penalty == "relu" or ((J > 0) & (kink > J)).sum() > 3
    assert (J - kink).abs().min() > 1e-4
    inputs = (u, spacing, penalty, threshold)
    assert torch.autograd.gradcheck(deformation_energy, inputs)
    assert torch.autograd.gradgradcheck(deformation_energy, inputs, fast_mode=True)


def test_gradgradcheck_entry_by_entry():
    u = (0.3 * uniform((1, 2, 3, 3), torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(deformation_energy, (u, (0.7, 1.9)))


@pytest.mark.parametrize("used", [0, 1, 2])
def test_an_energy_that_is_not_used_costs_no_gradient(used):
    u = golden.displacement().requires_grad_()
    with Calls() as record:
        deformation_energy(u)[used].backward()
    (arguments,) = [args for name, args in record.calls if name.endswith("backward")]
    assert [gradient is None for gradient in arguments[:3]] == [k != used for k in range(3)]
    expected = golden.displacement().requires_grad_()
    deformation_energy_reference(expected)[used].backward()
    torch.testing.assert_close(u.grad, expected.grad, rtol=1e-12, atol=1e-14)


def test_every_strip_border_is_differentiated():
    # Strips are 16 rows: a bump on each row in turn must get its own gradient.
    u = uniform((1, 2, 50, 3), torch.float64).requires_grad_()
    weights = torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64)

    def total(function):
        return sum(w * e.sum() for w, e in zip(weights, function(0.3 * u), strict=True))

    (actual,) = torch.autograd.grad(total(deformation_energy), u)
    (expected,) = torch.autograd.grad(total(deformation_energy_reference), u)
    for y in range(50):
        torch.testing.assert_close(actual[..., y, :], expected[..., y, :], rtol=1e-11, atol=1e-13)


# Peers


@pytest.mark.filterwarnings("ignore")  # other packages' own warnings, while they are imported
def test_neurite_agrees_on_diffusion():
    modules = pytest.importorskip("neurite.nn.modules", exc_type=ImportError)
    u = uniform((1, 2, 9, 12), torch.float64).requires_grad_()
    ours, theirs = deformation_energy(u).diffusion[0] / 4, modules.SpatialGradient("l2")(u)
    torch.testing.assert_close(ours, theirs)
    pair = torch.autograd.grad(ours, u), torch.autograd.grad(theirs, u)
    torch.testing.assert_close(*pair)


# Errors

FIELD = torch.zeros(1, 2, 4, 4)


@pytest.mark.parametrize(
    "displacement, options, error, message",
    [
        (None, {}, TypeError, "displacement must be a torch.Tensor, got NoneType"),
        (FIELD[0], {}, ValueError, r"displacement must be \(N, 2, H, W\) .*, got \[2, 4, 4\]"),
        (torch.zeros(1, 1, 4, 4), {}, ValueError, r"must be \(N, 2, H, W\) .*, got \[1, 1, 4, 4\]"),
        (torch.zeros(1, 2, 4, 4, 4), {}, ValueError, r"\(N, 3, Z, H, W\), got \[1, 2, 4, 4, 4\]"),
        (FIELD.int(), {}, TypeError, "displacement must be float16, .* got torch.int32"),
        (FIELD, {"spacing": (1, 1, 1)}, ValueError, r"spacing must have 2 lengths, .* got \[1.0"),
        (FIELD, {"spacing": (1, 0)}, ValueError, r"spacing must be positive and finite, got \[1.0"),
        (FIELD, {"spacing": -1}, ValueError, r"spacing must be positive .* got \[-1.0, -1.0\]"),
        (FIELD, {"spacing": (1, math.nan)}, ValueError, "spacing must be positive and finite"),
        (FIELD, {"spacing": math.inf}, ValueError, "spacing must be positive and finite"),
        (
            FIELD,
            {"penalty": "log"},
            ValueError,
            "penalty must be one of 'hyperelastic', 'log2', 'hinge', 'relu', got 'log'",
        ),
        (FIELD, {"threshold": 0.0}, ValueError, "threshold must be positive and finite, got 0.0"),
        (FIELD, {"threshold": math.nan}, ValueError, "threshold must be positive and finite"),
        (FIELD, {"threshold": "a"}, TypeError, "threshold must be a number, got 'a'"),
        (FIELD, {"threshold": 1.0}, ValueError, "below 1 with penalty='hyperelastic', got 1.0"),
        (
            FIELD,
            {"penalty": "log2", "threshold": 2},
            ValueError,
            "threshold must be below 1 with penalty='log2', got 2.0",
        ),
        (
            FIELD,
            {"penalty": "relu", "threshold": 0.1},
            ValueError,
            "threshold must be None with penalty='relu', which has none: 0.1",
        ),
    ],
)
def test_bad_arguments_are_refused(displacement, options, error, message):
    with pytest.raises(error, match=message):
        deformation_energy(displacement, **options)
