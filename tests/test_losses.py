import math

import golden
import numpy as np
import pytest
import torch
from cases import uniform

from diffreg import ops
from diffreg.losses import (
    LNCC,
    NCC,
    NGF,
    PLS,
    SIMILARITIES,
    SSD,
    WEIGHTS,
    DeformationEnergy,
    Objective,
    Weights,
    sum_of_squares,
    usual_objective,
)
from diffreg.losses.presets import PRESETS
from diffreg.registration import register_variational

MODULES = [SSD, NCC, LNCC, PLS, NGF]
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)


def measured(name, moving, warped, fixed, window=9):
    """The similarity by its own operator."""
    if name == "ssd":
        return sum_of_squares(warped, fixed)
    if name == "ncc":
        return ops.correlation(warped, fixed)
    if name == "lncc":
        return ops.local_correlation(warped, fixed, window)
    if name == "mi":
        return ops.mutual_information(warped, fixed, moving=moving)
    variant = {"pls": "pls", "smooth_pls": "smooth", "ngf": "ngf"}[name]
    scales = ops.gradient_scale(moving), ops.gradient_scale(fixed)
    return ops.parallel_level_sets(warped, fixed, *scales, variant)


every_similarity = pytest.mark.parametrize("name", list(SIMILARITIES))


@pytest.fixture(params=[(12, 13), (6, 7, 8)], ids=str)
def size(request):
    return request.param


both_small = pytest.mark.parametrize("size", [(5, 6), (3, 4, 3)], ids=str)


def pair(samples=3, channels=1, size=(12, 13)):
    shape = (samples, channels, *size)
    return [(1 + uniform(shape, torch.float64, seed)) / 2 for seed in (0, 1)]


def field(samples=3, size=(12, 13)) -> torch.Tensor:
    return 0.3 * uniform((samples, len(size), *size), torch.float64, 2)


def lengths(size):
    return (1.0, 2.0, 0.7)[: len(size)]


# Similarities


@pytest.mark.parametrize("dtype, digits", [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize(
    "loss, value",
    [
        (SSD(), 0.123074222245),
        (NCC(), 0.920199133648),
        (PLS(0.1, 0.1), 0.550069736896),
        (PLS(0.1, 0.1, "smooth"), 0.723496345091),
        (NGF(0.1, 0.1), 0.916805022271),
        (LNCC(5), 0.852863720354),
    ],
    ids=lambda value: type(value).__name__,
)
def test_golden(loss, value, dtype, digits):
    assert loss(golden.warped(dtype), golden.fixed(dtype)).item() == pytest.approx(
        value, rel=digits
    )


def by_hand(module, warped, fixed):
    """The values of math.md written with numpy, one image (*S) each."""
    if module is SSD:
        return np.mean((warped - fixed) ** 2)
    if module is NCC:
        return 1 - np.corrcoef(warped.ravel(), fixed.ravel())[0, 1]
    if module is LNCC:
        parts = []
        for centre in np.ndindex(warped.shape):
            window = tuple(slice(max(i - 2, 0), i + 3) for i in centre)
            v, c, _, r = np.cov(warped[window].ravel(), fixed[window].ravel(), bias=True).ravel()
            parts.append(c**2 / (max(v, 1e-5) * max(r, 1e-5)))
        return 1 - np.mean(parts)
    g, h = (
        np.stack([np.gradient(np.pad(image, 1, mode="edge"), axis=k) for k in range(image.ndim)])
        for image in (warped, fixed)
    )
    g, h = (each[(slice(None), *[slice(1, -1)] * warped.ndim)] for each in (g, h))
    product, a, b = (g * h).sum(0), (g**2).sum(0) + 0.1**2, (h**2).sum(0) + 0.2**2
    above = abs(product) + 0.1 * 0.2 if module is PLS else product
    return np.mean(1 - above**2 / (a * b))


@every_module
def test_values_are_those_of_numpy(module, size):
    warped, fixed = pair(2, size=size)
    settings = {LNCC: (5,), PLS: (0.1, 0.2), NGF: (0.1, 0.2)}
    found = module(*settings.get(module, ()), reduction="none")(warped, fixed)
    pairs = zip(warped.numpy(), fixed.numpy(), strict=True)
    expected = [by_hand(module, w[0], r[0]) for w, r in pairs]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


@every_module
@both_small
def test_vmap_is_a_loop_over_the_samples(module, size):
    images = [image.unsqueeze(1) for image in pair(size=size)]
    found = torch.func.vmap(module())(*images)
    torch.testing.assert_close(found, module(reduction="none")(*(i.squeeze(1) for i in images)))


def test_ssd_by_hand():
    warped = torch.tensor([1.0, 2.0, 5.0]).reshape(1, 1, 1, 3)
    fixed = torch.tensor([1.0, 4.0, 4.0]).reshape(1, 1, 1, 3)
    assert SSD()(warped, fixed).item() == pytest.approx(5 / 3)
    mask = torch.tensor([3.0, 1.0, 0.0]).reshape(1, 1, 1, 3)
    assert SSD()(warped, fixed, mask).item() == pytest.approx(1.0)


@every_module
def test_reductions(module, size):
    warped, fixed = pair(size=size)
    values = module(reduction="none")(warped, fixed)
    assert values.shape == (3,)
    assert len(set(values.tolist())) == 3
    torch.testing.assert_close(module()(warped, fixed), values.mean())
    torch.testing.assert_close(module(reduction="sum")(warped, fixed), values.sum())


@every_module
def test_another_reduction_is_refused(module):
    message = "reduction must be one of 'mean', 'sum', 'none', got 'median'"
    with pytest.raises(ValueError, match=message):
        module(reduction="median")


@every_module
def test_an_image_costs_least_beside_itself(module, size):
    warped, fixed = pair(size=size)
    aligned = module()(fixed, fixed).item()
    assert aligned < module()(warped, fixed).item()
    if module in (SSD, NCC, PLS):
        assert aligned == pytest.approx(0, abs=1e-14)


@every_module
def test_what_lies_outside_the_mask_does_not_count(module, size):
    warped, fixed = pair(1, size=size)
    half = size[0] // 2
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[:, :, :half] = True
    settings = {LNCC: (3,), PLS: (0.1, 0.1), NGF: (0.1, 0.1)}
    loss = module(*settings.get(module, ()))
    changed = warped.clone()
    changed[:, :, half + 1 :] = 0  # further away than any window or difference
    torch.testing.assert_close(loss(warped, fixed, mask), loss(changed, fixed, mask))
    assert loss(warped, fixed).item() != pytest.approx(loss(changed, fixed).item())


@every_module
def test_an_empty_mask_gives_a_finite_value_and_no_gradient(module, size):
    warped, fixed = pair(1, size=size)
    warped.requires_grad_()
    value = module()(warped, fixed, torch.zeros(1, 1, *size))
    value.backward()
    assert value.isfinite()
    assert not warped.grad.any()


@every_module
@both_small
def test_gradients_reach_both_images(module, size):
    warped, fixed = (image.requires_grad_() for image in pair(1, size=size))
    loss = module(0.3, 0.4) if module in (PLS, NGF) else module()
    assert torch.autograd.gradcheck(loss, (warped, fixed), fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (warped, fixed), fast_mode=True)


def test_ssd_refuses_images_that_do_not_fit():
    with pytest.raises(ValueError, match="fixed must have the shape of warped"):
        sum_of_squares(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))


def test_pls_refuses_another_variant():
    with pytest.raises(ValueError, match="variant must be one of 'pls', 'smooth'"):
        PLS(variant="x")


# Energies


def test_deformation_energy_weighs_its_terms(size):
    u, weights = field(size=size), (2.0, 3.0, 5.0)
    loss = DeformationEnergy(*weights, spacing=lengths(size), penalty="hinge", threshold=0.9)
    energies = ops.deformation_energy(u, lengths(size), "hinge", 0.9)
    assert all(e.sum() > 0 for e in energies)
    expected = sum(w * e for w, e in zip(weights, energies, strict=True)).mean()
    torch.testing.assert_close(loss(u), expected)


def test_deformation_energy_reductions():
    values = DeformationEnergy(reduction="none")(field())
    torch.testing.assert_close(DeformationEnergy(reduction="sum")(field()), values.sum())
    torch.testing.assert_close(DeformationEnergy()(field()), values.mean())


# Objective


def test_presets():
    assert WEIGHTS["default"] == Weights(60, 1, 30, 3)
    assert WEIGHTS["paper"] == Weights(60, 1, 1, 1)
    assert Objective().weights == WEIGHTS["default"] == (60, 1, 30, 3)
    assert Objective().similarity == {"ncc": 1.0, "lncc": 0.2}
    assert Objective(weights="paper").similarity == {"ncc": 1.0}
    assert Objective(weights=[1, 2, 3, 4]).similarity == Objective().similarity
    assert Objective(weights="paper").weights == WEIGHTS["paper"]
    assert Objective(weights=[1, 2, 3, 4]).weights == Weights(1, 2, 3, 4)
    assert Objective(weights="multimodal").similarity == {"pls": 1.0}
    for across in ("pls", "smooth_pls", "ngf", "mi"):
        assert usual_objective(across).weights == WEIGHTS["multimodal"] == Weights(3, 1, 30, 3)
    for within in ("ssd", "ncc", "lncc"):
        assert usual_objective(within).weights == WEIGHTS["default"]
    with pytest.raises(ValueError, match="similarity must be one of"):
        usual_objective("none")


@pytest.mark.parametrize("preset", list(WEIGHTS))
def test_a_preset_is_its_measures_and_energies_weighted(preset, size):
    moving, fixed = pair(size=size)
    u, weights = field(size=size), WEIGHTS[preset]
    objective = Objective(weights=preset)
    warped = ops.warp(moving, u)
    raw = [
        f * measured(name, moving, warped, fixed, objective.window)
        for name, f in objective.similarity.items()
    ]
    energies = ops.deformation_energy(u, threshold=PRESETS[preset].threshold)
    expected = weights[0] * sum(raw) + sum(
        w * e for w, e in zip(weights[1:], energies, strict=True)
    )
    torch.testing.assert_close(objective(moving, fixed, u).total, expected.mean())


@every_similarity
def test_the_objective_is_the_weighted_sum_of_its_terms(name, size):
    moving, fixed = pair(size=size)
    u, weights = field(size=size), Weights(7, 2, 3, 5)
    terms = Objective(name, weights)(moving, fixed, u)
    energies = ops.deformation_energy(u)
    for term, energy in zip(terms[2:5], energies, strict=True):
        assert torch.equal(term, energy)
    assert torch.equal(terms.warped, ops.warp(moving, u))
    raw = measured(name, moving, terms.warped, fixed)
    torch.testing.assert_close(terms.similarity, raw)
    expected = 7 * raw + 2 * energies[0] + 3 * energies[1] + 5 * energies[2]
    torch.testing.assert_close(terms.total, expected.mean())


@pytest.mark.parametrize(
    "name, module", [("ssd", SSD), ("ncc", NCC), ("lncc", LNCC)], ids=["ssd", "ncc", "lncc"]
)
def test_names_stand_for_their_modules(name, module, size):
    moving, fixed = pair(size=size)
    similarity = Objective(name)(moving, fixed, torch.zeros_like(field(size=size))).similarity
    torch.testing.assert_close(similarity, module(reduction="none")(moving, fixed))


@pytest.mark.parametrize(
    "name, variant", [("pls", "pls"), ("smooth_pls", "smooth"), ("ngf", "ngf")]
)
def test_edges_are_scaled_by_the_image_before_it_is_warped(name, variant, size):
    moving, fixed = pair(size=size)
    u = field(size=size)
    warped = ops.warp(moving, u)
    scale = ops.gradient_scale(moving)
    assert not torch.allclose(scale, ops.gradient_scale(warped))
    expected = ops.parallel_level_sets(warped, fixed, scale, ops.gradient_scale(fixed), variant)
    torch.testing.assert_close(Objective(name)(moving, fixed, u).similarity, expected)


@every_similarity
def test_the_gradient_is_that_of_the_weighted_terms(name, size):
    moving, fixed = pair(2, size=size)
    u, weights = field(2, size).requires_grad_(), Weights(7, 2, 3, 5)
    terms = Objective(name, weights)(moving, fixed, u)
    (total,) = torch.autograd.grad(terms.total, u, retain_graph=True)
    each = [torch.autograd.grad(t.mean(), u, retain_graph=True)[0] for t in terms[1:5]]
    assert all(gradient.any() for gradient in each)
    torch.testing.assert_close(total, sum(w * g for w, g in zip(weights, each, strict=True)))


@every_similarity
@both_small
def test_gradcheck(name, size):
    moving, fixed = pair(1, size=size)
    u = field(1, size).requires_grad_()

    def total(u):
        return Objective(name)(moving, fixed, u).total

    assert torch.autograd.gradcheck(total, u, fast_mode=True)
    assert torch.autograd.gradgradcheck(total, u, fast_mode=True)


def test_mixtures_are_weighted_sums(size):
    moving, fixed = pair(size=size)
    u = field(size=size)
    mixed = Objective({"ncc": 1.0, "lncc": 0.2})(moving, fixed, u).similarity
    ncc, lncc = (Objective(name)(moving, fixed, u).similarity for name in ("ncc", "lncc"))
    torch.testing.assert_close(mixed, ncc + 0.2 * lncc)


def test_the_mask_weighs_the_similarity_alone(size):
    moving, fixed = pair(size=size)
    u = field(size=size)
    mask = (uniform((3, 1, *size), torch.float64, 5) > 0).double()
    objective = Objective("ncc")
    plain, masked = objective(moving, fixed, u), objective(moving, fixed, u, mask)
    expected = ops.correlation(plain.warped, fixed, mask)
    assert torch.equal(masked.similarity, expected)
    assert not torch.allclose(masked.similarity, plain.similarity)
    assert all(torch.equal(a, b) for a, b in zip(masked[2:], plain[2:], strict=True))


def test_options_reach_the_operators(size):
    moving, fixed = pair(size=size)
    u = 3 * field(size=size)
    objective = Objective("ssd", "paper", "zeros", "hinge", 0.7, lengths(size))
    terms = objective(moving, fixed, u)
    assert torch.equal(terms.warped, ops.warp(moving, u, padding="zeros"))
    energies = ops.deformation_energy(u, lengths(size), "hinge", 0.7)
    assert all(torch.equal(t, e) for t, e in zip(terms[2:5], energies, strict=True))


def test_with_spacing_changes_the_spacing_alone():
    objective = Objective({"ncc": 1.0, "ssd": 2.0}, (1, 2, 3, 4), "zeros", "hinge", 0.7)
    other = objective.with_spacing((2, 3))
    assert other.spacing == (2, 3) and objective.spacing is None
    for name in ("similarity", "weights", "padding", "penalty", "threshold"):
        assert getattr(other, name) == getattr(objective, name)


def test_a_moving_image_of_another_size(size):
    moving, _ = pair(size=(*size[:-1], 9))
    _, fixed = pair(size=size)
    assert Objective("ssd")(moving, fixed, field(size=size)).warped.shape == fixed.shape


@pytest.mark.parametrize(
    "options, message",
    [
        ({"similarity": "mse"}, "similarity must be one of 'ssd', 'ncc', .*, got 'mse'"),
        ({"similarity": {}}, "similarity must name at least one measure, got an empty mapping"),
        ({"similarity": {"ncc": 1, "x": 1}}, "similarity must be one of .* got 'x'"),
        (
            {"weights": "best"},
            "weights must be one of 'default', 'slice', 'volume', .*'paper', got 'best'",
        ),
        ({"weights": (1, 2, 3)}, r"weights must be a preset or 4 numbers >= 0 .* got \[1.0, 2.0"),
        ({"weights": (1, 2, 3, -1)}, "weights must be a preset or 4 numbers >= 0"),
        ({"weights": (1, 2, 3, math.nan)}, "weights must be a preset or 4 numbers >= 0"),
        ({"weights": (1, 2, 3, math.inf)}, "weights must be a preset or 4 numbers >= 0"),
        ({"padding": "wrap"}, "padding must be one of 'border', 'zeros', 'reflection', got 'wrap'"),
        ({"penalty": "log"}, "penalty must be one of .* got 'log'"),
        ({"threshold": 1}, "threshold must be below 1 with penalty='hyperelastic', got 1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(**options)


@pytest.mark.parametrize("options", [{"penalty": "log"}, {"threshold": 1}], ids=str)
def test_energies_refuse_bad_options_at_once(options):
    with pytest.raises(ValueError, match="penalty"):
        DeformationEnergy(**options)


# An image registered to itself should stay where it is.


def blobs(size: int = 48) -> torch.Tensor:
    """Soft blobs on a flat ground, with a faint texture."""
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.zeros(size, size, dtype=torch.float64)
    for y, x, radius in ((16, 14, 7), (30, 31, 9), (14, 34, 5), (35, 12, 5)):
        image += torch.exp(-(((i - y) ** 2 + (j - x) ** 2) / radius**2))
    return (image + 0.01 * uniform((size, size), torch.float64))[None, None]


@every_similarity
def test_an_image_registered_to_itself(name, record_property):
    image = blobs()
    u = register_variational(image, image, Objective(name), levels=2, iterations=30)
    largest = u.abs().max().item()
    record_property("largest displacement, voxels", largest)
    # The others have their minimum elsewhere: theirs is recorded.
    assert largest < 0.1 or name not in ("ssd", "ncc", "pls")


@every_similarity
def test_a_pair_s_value_and_gradient_are_the_objective_s(name, size):
    moving, fixed = (image[:1] for image in pair(size=size))
    u = field(size=size)[:1]
    mask = (uniform((1, 1, *size), torch.float64, 5) > 0).double()
    objective = Objective({name: 1.5}, Weights(7, 2, 3, 5), spacing=lengths(size))
    value, gradient = objective.value_and_gradient_of(moving, fixed, mask)(u)
    leaf = u.clone().requires_grad_()
    total = objective(moving, fixed, leaf, mask, return_warped=False).total
    assert value == pytest.approx(total.item(), rel=1e-12)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(total, leaf)[0], rtol=1e-10, atol=1e-12
    )
    assert not gradient.requires_grad


def test_lncc_of_another_window_is_that_operators():
    moving, fixed = pair(size=(12, 13))
    u = field(size=(12, 13)).requires_grad_()
    mask = torch.rand(len(moving), 1, 12, 13, generator=torch.Generator().manual_seed(1)).to(moving)
    objective = Objective({"ncc": 1.0, "lncc": 0.4}, (2, 1, 3, 1), window=5)
    terms = objective(moving, fixed, u, mask)
    warped = ops.warp(moving, u)
    expected = ops.correlation(warped, fixed, mask)
    expected = expected + 0.4 * ops.local_correlation(warped, fixed, 5, mask)
    torch.testing.assert_close(terms.similarity, expected)
    (gradient,) = torch.autograd.grad(terms.total * len(moving), u)
    for n in range(len(moving)):
        one = [image[n : n + 1] for image in (moving, fixed, mask)]
        value, own = objective.value_and_gradient_of(*one)(u[n : n + 1].detach())
        torch.testing.assert_close(own, gradient[n : n + 1])
        torch.testing.assert_close(value, objective(*one[:2], u[n : n + 1], one[2]).total)


@pytest.mark.parametrize("window, error", [(4, ValueError), (0, ValueError), (2.5, TypeError)])
def test_windows_are_odd(window, error):
    with pytest.raises(error, match="window must be"):
        Objective("lncc", window=window)
