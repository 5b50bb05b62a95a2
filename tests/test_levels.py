"""How the variational method comes down its levels: stiffness, steps that fold, noise."""

import math
from collections import Counter

import pytest
import torch
from test_variational import known_warp, pair, texture

from diffreg.fields import identity_grid
from diffreg.losses import Objective, Weights
from diffreg.ops import jacobian_determinant, warp
from diffreg.registration import register_variational, terms, variational
from diffreg.registration.unfolded import KEPT, SMALLEST_DETERMINANT, bounds_of, shortened_
from diffreg.registration.whiteness import structured


def noise(size, seed):
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def weights_of_levels(monkeypatch):
    found = []
    with_spacing = Objective.with_spacing

    def spy(objective, spacing, weights):
        found.append(weights)
        return with_spacing(objective, spacing, weights)

    monkeypatch.setattr(Objective, "with_spacing", spy)
    return found


@pytest.mark.parametrize("spacing", [None, 2.0, (1.0, 3.0)], ids=str)
def test_coarse_levels_are_stiffer(weights_of_levels, spacing):
    moving, fixed = texture((64, 64)), texture((64, 64)).flip(3)
    register_variational(moving, fixed, Objective("ncc", (7, 2, 3, 4), spacing=spacing))
    by_hand = [Weights(7, 32, 768, 4), Weights(7, 8, 48, 4), Weights(7, 2, 3, 4)]
    assert weights_of_levels == by_hand  # q = 4, 2, 1: q^2 times 2, q^4 times 3


def test_the_similarity_of_a_part_of_the_image_weighs_as_much_as_the_part(weights_of_levels):
    """In one half of the image the two differ by noise alone, in the other one is displaced."""
    fixed = texture((64, 64))
    moving = warp(fixed, 2 * known_warp((64, 64)))
    moving[..., 32:] = fixed[..., 32:] + 0.1 * noise((64, 32), 0).to(fixed)
    share = structured(moving, fixed)[1]
    assert 0.2 < share < 0.8
    register_variational(moving, fixed, Objective("ncc", (7, 2, 3, 4)), levels=1, iterations=1)
    assert weights_of_levels == [pytest.approx((7 * share, 2, 3, 4))]


def test_leaving_the_image_has_its_price_in_what_is_minimised(monkeypatch):
    """Eight times the similarity's weight and the mean square of how far beyond, in sizes."""
    goals = []
    minimise = variational.minimise
    monkeypatch.setattr(variational, "minimise", lambda *a: goals.append(a[0]) or minimise(*a))
    moving, fixed = texture((24, 20)), texture((24, 20)).flip(3)
    objective = Objective({"ncc": 1.0, "ssd": 0.5}, (3, 0, 0, 0))
    register_variational(moving, fixed, objective, levels=1, iterations=1)
    gone = torch.zeros(1, 2, 24, 20).to(fixed)
    gone[:, 0] = 6.0
    value, gradient = goals[0](gone)
    alone, slope = objective.value_and_gradient_of(moving, fixed)(gone)
    beyond = (torch.arange(24.0) + 6 - 23).clamp(min=0) / 24
    factor = 8 * 3 * 1.5
    assert float(value - alone) == pytest.approx(factor * float(beyond.square().mean()), rel=1e-5)
    found = (gradient - slope)[0, 0, :, 0].float()
    torch.testing.assert_close(found, factor * 2 * beyond / 24 / (24 * 20), rtol=1e-4, atol=1e-7)


def test_iterations_are_counted_from_the_finest_level():
    calls = []
    moving, fixed = texture((64, 64)), texture((64, 64)).flip(3)
    for iterations in ((3, 2), (9, 3, 3, 2), 2):
        register_variational(
            *(moving, fixed, None, 6), iterations, progress=lambda *call: calls.append(call)
        )
    assert {total for _, total in calls[-100:]} == {3 + 3 + 2, 6}


def folding_step():
    """(point, trial): of one voxel pushed beyond its neighbour, and far from there a shift."""
    point = torch.zeros(1, 2, 20, 20, dtype=torch.float64)
    trial = point.clone()
    trial[0, 0, 5, 5] = 1.5
    trial[0, :, 12:, 12:] = 0.25
    return point, trial


def test_a_step_is_shortened_where_it_folds_and_nowhere_else():
    point, trial = folding_step()
    whole = trial.clone()
    bounds, changed = shortened_(trial, point, bounds_of(point))
    assert changed and torch.equal(bounds, bounds_of(trial))
    assert bounds.min() >= KEPT
    assert (trial != whole).any()
    assert torch.equal(trial[..., 12:, 12:], whole[..., 12:, 12:])


def test_a_step_that_folds_nothing_is_taken_whole():
    point, _ = folding_step()
    trial = 0.1 * known_warp((20, 20))
    whole = trial.clone()
    bounds, changed = shortened_(trial, point, bounds_of(point))
    assert not changed and torch.equal(trial, whole) and bounds.min() > SMALLEST_DETERMINANT


@pytest.mark.parametrize("value", [-2.0, math.nan])
def test_a_step_that_folds_everywhere_is_refused(value):
    point = torch.zeros(1, 2, 20, 20)
    trial = value * torch.arange(20.0).reshape(1, 1, 20, 1).expand(1, 2, 20, 20)
    assert shortened_(trial.clone(), point, bounds_of(point)) == (None, False)


def test_a_step_in_a_volume_is_shortened_by_the_bound():
    point = torch.zeros(1, 3, 14, 14, 14)
    trial = point.clone()
    trial[0, :, 6, 6, 6] = 0.4  # 1 - 3 * .4 of a cell's bound
    bounds, changed = shortened_(trial, point, bounds_of(point))
    assert changed and bounds.min() >= KEPT and jacobian_determinant(trial, "bound").min() > 0


def test_local_shortening_reaches_further_than_shortening_all(monkeypatch):
    """Cheap folds: where all of a step is shortened instead, the descent ends above."""

    def total(counts):
        u = register_variational(moving, fixed, objective, 1, 25, counts=counts)
        return objective(moving, fixed, u).total.item()

    moving, fixed = texture(), texture().flip(3)
    objective = Objective("ssd", weights=(1000, 0.001, 0.01, 0))
    counts = Counter()
    local = total(counts)
    assert counts["shortened locally"] > 3 and counts["steps"] <= counts["evaluations"]
    monkeypatch.setattr("diffreg.registration.unfolded.ATTEMPTS", 0)
    assert local < 0.95 * total(Counter())


@pytest.mark.parametrize("size", [(64, 70), (40, 24, 20)], ids=str)
def test_noise_has_no_weight_and_what_is_displaced_has(size):
    image = torch.sin(sum((k + 1) * x / 6 for k, x in enumerate(identity_grid(size)[0])))[
        None, None
    ]
    first, second = image + 0.1 * noise(size, 0), image + 0.1 * noise(size, 1)
    assert structured(first, second)[1] < 0.02
    assert structured(first, 1 - second)[1] < 0.02
    assert structured(first.abs(), second.abs() ** 2, across=True)[1] < 0.05
    assert structured(first, second.roll(2, -1))[1] > 0.9
    assert structured(image, image.roll(1, -1)) == (None, 1.0)
    assert structured(image, image.clone())[1] == 0
    inside = (image > 0).to(image)
    assert structured(inside * first, inside * second)[1] == 0  # what is equal tells nothing


def test_the_weights_are_local():
    image = torch.sin(torch.linspace(0, 60, 96)).expand(1, 1, 96, 96)
    first, second = image + 0.05 * noise((96, 96), 0), image + 0.05 * noise((96, 96), 1)
    second[..., :32, :] = second[..., :32, :].roll(2, -1)
    weights, _ = structured(first, second)
    assert weights[..., :24, :].min() > 0.9 and weights[..., 56:, :].mean() < 0.05


@pytest.mark.parametrize("size", [(1, 9), (2, 30), (3, 2, 40), (2, 1, 1), (1, 1)], ids=str)
def test_the_window_is_no_longer_than_the_image(size):
    weights, share = structured(noise(size, 0), noise(size, 1))
    assert 0 <= share <= 1 and (weights is None or weights.isfinite().all())


def test_what_a_function_of_intensities_explains_is_seen_within_a_contrast():
    """A wider blob is a function of a narrower one: `mi` sees nothing of it, `ncc` does."""
    y, x = identity_grid((64, 64))[0] - 31.5
    narrow, wide = (torch.exp(-(y**2 + x**2) / s**2)[None, None] for s in (12, 16))
    narrow, wide = narrow + 1e-3 * noise((64, 64), 0), wide + 1e-3 * noise((64, 64), 1)
    assert structured(narrow, wide)[1] > 0.9
    u = register_variational(narrow, wide, Objective({"ncc": 1.0, "lncc": 0.5}, "slice"))
    assert u.abs().max() > 2


def test_a_mask_is_a_factor_of_the_weights():
    first, second = torch.rand(2, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.full((1, 1, 64, 64), 0.5)
    mask[..., :32, :] = 0
    smooth = torch.sin(torch.arange(64.0) / 5).expand(1, 1, 64, 64)
    weights, share = structured(smooth, smooth.roll(3, -1), mask)
    assert torch.equal(weights, mask) and share == 1
    assert structured(first, second, mask)[1] < 0.05
    assert structured(first, second, torch.zeros_like(mask))[1] == 0


@pytest.mark.parametrize("similarity", [{"ncc": 1.0, "lncc": 0.5}, "mi"], ids=str)
def test_nothing_bends_where_nothing_is_to_bend(similarity):
    image = texture((64, 64)).float()
    images = (image + 0.03 * noise((64, 64), seed) for seed in (0, 1))
    u = register_variational(*images, Objective(similarity, "slice"))
    assert u.norm(dim=1).quantile(0.95) < 0.1


def test_noise_of_rounding_changes_little():
    moving, fixed = (image.float() for image in pair())
    u = register_variational(moving, fixed)
    v = register_variational(moving + 1e-6 * noise(moving.shape[2:], 0), fixed)
    assert (u - v).norm(dim=1).quantile(0.95) < 0.05
    assert (warp(moving, u) - fixed).abs().mean() < 0.2 * (moving - fixed).abs().mean()


def test_an_image_stays_on_itself():
    image = texture((64, 64)).float()
    for similarity in ({"ncc": 1.0, "lncc": 0.5}, "mi"):
        assert not register_variational(image, image.clone(), Objective(similarity)).any()


def test_an_objective_beyond_rounding_ends():
    """Where a step changes nothing of a value, a parabola has no minimum."""
    moving, fixed = (image.float() for image in pair())
    u = register_variational(moving, fixed, Objective("ssd", (1e30, 0, 1, 1)), iterations=3)
    assert u.isfinite().all()


def test_a_level_without_anything_to_do_keeps_its_start(monkeypatch):
    monkeypatch.setattr(terms, "structured", lambda *images: (None, 0.0))
    begin = known_warp()
    assert torch.equal(register_variational(*pair(), start=begin), begin)


def test_what_folds_between_two_levels_is_smoothed(monkeypatch):
    """A repair of 22 cells took 48 seconds, as many as the rest of twenty registrations."""
    begun = []
    minimise = variational.minimise

    def folding(displacement, size):
        u = torch.zeros(1, 2, *size, dtype=displacement.dtype)
        u[0, 0, 8, 8] = 1.5  # beyond its neighbour
        return u

    monkeypatch.setattr(variational, "minimise", lambda *a: begun.append(a[1]) or minimise(*a))
    monkeypatch.setattr(variational, "resize", folding)
    monkeypatch.setattr(variational, "make_diffeomorphic", None)
    register_variational(texture((32, 32)), texture((32, 32)).flip(3), iterations=1)
    assert len(begun) == 2
    assert all(bounds_of(u).min() > SMALLEST_DETERMINANT and u.max() > 0.1 for u in begun)
