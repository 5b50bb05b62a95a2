"""registration_objective: one call gives what the single operators give one after the other."""

import math

import pytest
import torch
from cases import Calls, uniform

from diffreg.losses import Objective
from diffreg.losses.presets import PRESETS
from diffreg.ops import (
    RegistrationObjective,
    deformation_energy,
    gradient_scale,
    local_correlation,
    parallel_level_sets,
    registration_objective,
    registration_objective_reference,
    registration_objective_value_and_gradient,
    warp,
)
from diffreg.ops._objective import DEFAULT_WEIGHTS, MEASURES

every_measure = pytest.mark.parametrize("name", MEASURES)

LEARNED = torch.ones((), requires_grad=True)


def images(samples=2, channels=1, size=(12, 13), dtype=torch.float64):
    shape = (samples, channels, *size)
    return 0.5 + 0.4 * uniform(shape, dtype, 1), 0.5 + 0.4 * uniform(shape, dtype, 2)


def field(samples=2, size=(12, 13), dtype=torch.float64):
    return 0.4 * uniform((samples, len(size), *size), dtype, 3)


def test_an_example_by_hand():
    # A step moved by half a voxel: 1/4 of one voxel of two in ssd; a constant field costs nothing.
    moving = torch.tensor([[[[0.0, 1.0]]]])
    fixed = torch.tensor([[[[0.5, 1.5]]]])
    u = torch.tensor([[[[0.0, 0.0]], [[0.5, 0.5]]]])
    terms = registration_objective(moving, fixed, u, "ssd", weights=(8, 1, 1, 1))
    assert terms.similarity.item() == 0.125 and terms.total.item() == 1.0
    assert terms.diffusion.item() == terms.bending.item() == terms.determinant.item() == 0


def test_its_goldens_are_those_of_the_operators():
    i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (8, 10)), indexing="ij")
    moving = 0.5 + 0.4 * torch.sin(0.6 * i + 0.3 * j) + 0.1 * torch.cos(0.9 * j)
    fixed = 0.5 + 0.3 * torch.cos(0.5 * i - 0.4 * j)
    u = torch.stack([0.9 * torch.sin(0.7 * i + 0.4 * j), 0.8 * torch.cos(0.5 * i - 0.9 * j)])
    terms = registration_objective(moving[None, None], fixed[None, None], u[None])
    found = [terms.diffusion.item(), terms.bending.item(), terms.determinant.item()]
    assert found == pytest.approx([0.568699199134, 0.484931064063, 0.792890799759], rel=1e-11)
    still = registration_objective(moving[None, None], fixed[None, None], 0 * u[None])
    assert still.similarity.item() == pytest.approx(0.920199133648, rel=1e-11)
    eps = {"eps_moving": 0.1, "eps_fixed": 0.1}
    for name, golden in (
        ("ssd", 0.123074222245),
        ("lncc", 0.908176762701),
        ("pls", 0.550069736896),
        ("smooth_pls", 0.723496345091),
        ("ngf", 0.916805022271),
    ):
        value = registration_objective(
            moving[None, None], fixed[None, None], 0 * u[None], name, **eps
        )
        assert value.similarity.item() == pytest.approx(golden, rel=1e-11), name


@every_measure
@pytest.mark.parametrize("size", [(31, 40), (32, 33), (65, 20), (150, 9), (9, 70, 5)], ids=str)
def test_strips_meet_without_a_seam(name, size):
    moving, fixed = images(1, 2, size)
    u = field(1, size).requires_grad_()
    arguments = moving, fixed, u, name, (5, 2, 3, 4)
    ours, theirs = registration_objective(*arguments), registration_objective_reference(*arguments)
    torch.testing.assert_close(ours[:5], theirs[:5], rtol=1e-11, atol=1e-13)
    slopes = [torch.autograd.grad(terms.total.sum(), u)[0] for terms in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [(12, 13), (6, 7, 8)], ids=str)
@pytest.mark.parametrize("window", [1, 5, 11])
def test_the_window_is_that_of_the_local_correlation(size, window):
    moving, fixed = images(size=size)
    u = (0.4 * uniform((2, len(size), *size), torch.float64, 3)).requires_grad_()
    weights, mask = (7, 0, 0, 0), uniform((2, 1, *size), torch.float64, 4).abs()
    terms = registration_objective(moving, fixed, u, "lncc", weights, mask=mask, window=window)
    expected = local_correlation(warp(moving, u), fixed, window, mask)
    torch.testing.assert_close(terms.similarity, expected, rtol=1e-12, atol=0)
    (own,) = torch.autograd.grad(terms.total.sum(), u)
    (parts,) = torch.autograd.grad(7 * expected.sum(), u)
    torch.testing.assert_close(own, parts, rtol=1e-11, atol=1e-13)
    other = registration_objective(moving, fixed, u, "lncc", weights, mask=mask)
    assert not torch.allclose(terms.similarity, other.similarity)


def test_each_form_has_the_window():
    moving, fixed = images()
    u = field().requires_grad_()
    arguments = moving, fixed, u, {"lncc": 1.0}
    terms = registration_objective(*arguments, window=5)
    (expected,) = torch.autograd.grad(terms.total.sum(), u, retain_graph=True)
    again, gradient = registration_objective_value_and_gradient(*arguments, window=5)
    assert torch.equal(terms.total, again.total) and torch.equal(gradient, expected)
    # What the forward pass left is gone: computed anew.
    (second,) = torch.autograd.grad(terms.total.sum(), u, retain_graph=True)
    (by_term,) = torch.autograd.grad(60 * terms.similarity.sum(), u, retain_graph=True)
    (energies,) = torch.autograd.grad(
        sum(w * e.sum() for w, e in zip(DEFAULT_WEIGHTS[1:], terms[2:5], strict=True)), u
    )
    assert torch.equal(second, expected)
    torch.testing.assert_close(by_term + energies, expected, rtol=1e-11, atol=1e-13)
    composed = registration_objective(moving.requires_grad_(), *arguments[1:], window=5)
    torch.testing.assert_close(composed.total, terms.total, rtol=1e-12, atol=0)


def test_the_raw_operators_window_may_be_left_out():
    moving, fixed = images()
    u = field().requires_grad_()
    arguments = [None, None, None, [0.0, 0, 1, 0, 0, 0], [1.0, 0, 0, 0], "border", [1.0, 1.0]]
    arguments = [moving, fixed, u, *arguments, "hyperelastic", 0.2, True, False]
    operator = torch.ops.diffreg.registration_objective
    found = [operator(*arguments, *window)[0] for window in ((), (9,), (3,))]
    gradients = [torch.autograd.grad(total.sum(), u)[0] for total in found]
    assert torch.equal(found[0], found[1]) and torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(found[0], found[2])
    arguments[0] = moving.expand(3, *moving.shape)
    over_moving = torch.func.vmap(lambda m: operator(m, *arguments[1:])[0])(arguments[0])
    torch.testing.assert_close(over_moving, found[0].expand(3, -1))


def test_factors_may_change_under_torch_compile():
    """A number of a compiled function's, annealed for instance, is not known when it is traced."""
    moving, fixed = images()
    loss = lambda u, f: registration_objective(moving, fixed, u, {"ncc": 1.0, "lncc": f}).total  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for factor in (0.2, 0.3):
        torch.testing.assert_close(compiled(field(), factor), loss(field(), factor))


@every_measure
def test_vmap_of_images_that_need_a_gradient_is_a_loop(name):
    """vmap hides that they need one."""
    several = [torch.stack([x, 0.7 * x]).requires_grad_() for x in (*images(), field())]
    loss = lambda *x: registration_objective(*x, name).total  # noqa: E731
    mapped = torch.func.vmap(loss)(*several)
    looped = torch.stack([loss(*each) for each in zip(*several, strict=True)])
    torch.testing.assert_close(mapped, looped)
    found = [torch.autograd.grad(values.square().sum(), several) for values in (mapped, looped)]
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@every_measure
def test_the_form_without_autograd_gives_value_and_gradient(name):
    moving, fixed = images()
    u = field()
    terms, gradient = registration_objective_value_and_gradient(moving, fixed, u, {name: 2.0})
    leaf = u.clone().requires_grad_()
    expected = registration_objective(moving, fixed, leaf, {name: 2.0})
    for own, other in zip(terms[:5], expected[:5], strict=True):
        assert torch.equal(own, other) and not own.requires_grad
    (by_autograd,) = torch.autograd.grad(expected.total.sum(), leaf)
    assert torch.equal(gradient, by_autograd)


def test_the_total_s_gradient_is_kept_from_the_forward_pass():
    moving, fixed = images()
    u = field().requires_grad_()
    with Calls() as watch:
        registration_objective(moving, fixed, u).total.sum().backward()
    names = [name for name, _ in watch.calls]
    assert names == ["registration_objective", "registration_objective_scale"]


def test_each_term_has_a_gradient_of_its_own():
    moving, fixed = images()
    u = field().requires_grad_()
    terms = registration_objective(moving, fixed, u, "pls", (2, 3, 5, 7))
    rows = [torch.autograd.grad(t.sum(), u, retain_graph=True)[0] for t in terms[:5]]
    assert all(row.any() for row in rows)
    expected = sum(w * row for w, row in zip((2, 3, 5, 7), rows[1:], strict=True))
    torch.testing.assert_close(rows[0], expected, rtol=1e-11, atol=1e-13)


def test_a_weight_differs_from_sample_to_sample():
    moving, fixed = images(3)
    u = field(3).requires_grad_()
    share = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    total = registration_objective(moving, fixed, u).total
    (weighted,) = torch.autograd.grad((share * total).sum(), u, retain_graph=True)
    (plain,) = torch.autograd.grad(total.sum(), u)
    torch.testing.assert_close(weighted, plain * share.reshape(3, 1, 1, 1))
    assert not weighted[1].any()


def test_images_that_need_a_gradient_get_one():
    moving, fixed = (image.requires_grad_() for image in images())
    u = field().requires_grad_()
    mixture = {"ncc": 1.0, "pls": 0.5}
    ours = torch.autograd.grad(
        registration_objective(moving, fixed, u, mixture).total.sum(), (moving, fixed, u)
    )
    theirs = torch.autograd.grad(
        registration_objective_reference(moving, fixed, u, mixture).total.sum(), (moving, fixed, u)
    )
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


def test_the_raw_operator_refuses_a_gradient_it_does_not_have():
    moving, fixed = images()
    arguments = [None, None, None, [0.0, 1, 0, 0, 0, 0], [1.0, 1, 1, 1], "border", [1.0, 1.0]]
    terms = torch.ops.diffreg.registration_objective(
        moving.requires_grad_(), fixed, field(), *arguments, "hyperelastic", 0.2, False, False
    )
    with pytest.raises(NotImplementedError, match="gradient to the displacement alone"):
        terms[0].sum().backward()


@pytest.mark.parametrize("weights", [(1, 1, 1, 0), (0, 1, 1, 1), (1, 0, 0, 1)])
def test_terms_of_weight_0_keep_their_value(weights):
    moving, fixed = images()
    u = field()
    expected = registration_objective_reference(moving, fixed, u, "ncc", weights)
    for found in (
        registration_objective(moving, fixed, u.clone().requires_grad_(), "ncc", weights),
        registration_objective_value_and_gradient(moving, fixed, u, "ncc", weights)[0],
    ):
        for own, other in zip(found[:5], expected[:5], strict=True):
            torch.testing.assert_close(own.detach(), other, rtol=1e-11, atol=1e-13)


@every_measure
def test_the_energies_gradient_does_not_see_the_images(name):
    moving, fixed = images()
    moving[0, 0, 5, 5] = math.nan
    u = field().requires_grad_()
    terms = registration_objective(moving, fixed, u, name, eps_moving=0.1, eps_fixed=0.1)
    (ours,) = torch.autograd.grad(terms.bending.sum(), u)
    (theirs,) = torch.autograd.grad(deformation_energy(u).bending.sum(), u)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_a_mask_or_a_scale_has_no_gradient_and_the_message_says_so():
    moving, fixed = images()
    u = field().requires_grad_()
    mask = torch.ones(2, 1, 12, 13, dtype=torch.float64, requires_grad=True)
    total = registration_objective(moving, fixed, u, mask=mask).total
    with pytest.raises(NotImplementedError, match=r"no gradient to mask: pass mask\.detach"):
        total.sum().backward()


def test_a_gradient_penalty_is_not_lost():
    moving, fixed = images(1, 1, (6, 7))
    u = field(1, (6, 7)).requires_grad_()
    norms = []
    for function in (registration_objective, registration_objective_reference):
        (first,) = torch.autograd.grad(function(moving, fixed, u).total.sum(), u, create_graph=True)
        norms.append(torch.autograd.grad((first**2).sum(), u)[0])
    assert norms[0].any()
    torch.testing.assert_close(*norms, rtol=1e-9, atol=1e-9)


def test_scales_are_those_of_the_images_before_warping():
    moving, fixed = images()
    u = field()
    found = registration_objective(moving, fixed, u, "pls").similarity
    scales = gradient_scale(moving), gradient_scale(fixed)
    expected = parallel_level_sets(warp(moving, u), fixed, *scales)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    given = registration_objective(moving, fixed, u, "pls", eps_moving=0.3, eps_fixed=scales[1])
    assert not torch.allclose(given.similarity, found)


def test_the_warped_image_comes_back_where_it_is_asked_for():
    moving, fixed = images(2, 3)
    u = field().requires_grad_()
    assert registration_objective(moving, fixed, u).warped is None
    warped = registration_objective(moving, fixed, u, padding="zeros", return_warped=True).warped
    assert torch.equal(warped, warp(moving, u, padding="zeros"))
    (ours,) = torch.autograd.grad((warped**2).sum(), u)
    (theirs,) = torch.autograd.grad((warp(moving, u, padding="zeros") ** 2).sum(), u)
    torch.testing.assert_close(ours, theirs)


def test_options_reach_the_energies():
    moving, fixed = images()
    u = 3 * field()
    options = {"penalty": "hinge", "threshold": 0.7, "spacing": (1.0, 2.0)}
    terms = registration_objective(moving, fixed, u, **options)
    expected = deformation_energy(u, (1.0, 2.0), "hinge", 0.7)
    for own, other in zip(terms[2:5], expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=0)


def test_no_weights_are_the_default_preset():
    moving, fixed = images()
    terms = registration_objective(moving, fixed, field())
    weights = PRESETS["default"].weights
    expected = sum(w * t for w, t in zip(weights, terms[1:5], strict=True))
    torch.testing.assert_close(terms.total, expected)


def test_a_displacement_that_is_not_finite_shows():
    moving, fixed = images(2)
    u = field(2)
    u[1, 0, 5, 5] = math.nan
    terms, gradient = registration_objective_value_and_gradient(moving, fixed, u)
    assert torch.isfinite(terms.total[0]) and gradient[0].isfinite().all()
    assert terms.total[1].isnan() and gradient[1, 0, 5, 5].isnan()


@every_measure
@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_an_image_that_is_not_finite_shows(name, which):
    """In each form; of the measures that have one, the edge scale is not finite either."""
    moving, fixed = images(2)
    {"moving": moving, "fixed": fixed}[which][1, 0, 5, 5] = math.nan
    u = field(2)
    terms, _ = registration_objective_value_and_gradient(moving, fixed, u, name)
    for function in (registration_objective, registration_objective_reference):
        leaf, image = u.clone().requires_grad_(), moving.clone().requires_grad_()
        for found in (terms, function(moving, fixed, leaf, name), function(image, fixed, u, name)):
            assert found.total[0].isfinite() and found.total[1].isnan()
        (first,) = torch.autograd.grad(
            function(moving, fixed, leaf, name).total.sum(), leaf, create_graph=True
        )
        (second,) = torch.autograd.grad(first[0].square().sum(), leaf)
        assert second[0].isfinite().all()
    objective = Objective(name)
    value, _ = objective.value_and_gradient_of(moving[1:], fixed[1:])(u[1:])
    assert value.isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_single_where_an_image_has_a_gradient(dtype):
    moving, fixed = images(dtype=dtype)
    u = field(dtype=dtype)
    expected = registration_objective(moving, fixed, u, "pls", return_warped=True)
    terms = registration_objective(moving.requires_grad_(), fixed, u, "pls", return_warped=True)
    for found, right in zip(terms, expected, strict=True):
        torch.testing.assert_close(found.detach(), right, rtol=1e-6, atol=1e-6)
    terms.total.sum().backward()
    assert moving.grad.dtype == dtype and moving.grad.any()


@pytest.mark.parametrize("size", [(6, 7), (1, 7)])
def test_energies_are_computed_in_double_where_an_image_is(size):
    """Those of an image of one row, which are not the operator's own, too."""
    moving, fixed = images(1, 1, size)
    u = field(1, size, torch.float16)
    expected, slope = registration_objective_value_and_gradient(moving, fixed, u.double())
    terms, gradient = registration_objective_value_and_gradient(moving, fixed, u)
    for found in (terms, registration_objective(moving, fixed, u)):
        assert all(torch.equal(*pair) for pair in zip(found[:5], expected[:5], strict=True))
    assert torch.equal(gradient, slope.half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_single(dtype):
    moving, fixed = images(dtype=dtype)
    u = field(dtype=dtype).requires_grad_()
    terms = registration_objective(moving, fixed, u)
    expected = registration_objective(moving.float(), fixed.float(), u.detach().float())
    assert all(torch.equal(t.detach(), e) for t, e in zip(terms[:5], expected[:5], strict=True))
    terms.total.sum().backward()
    assert u.grad.dtype == dtype and u.grad.any()


@pytest.mark.parametrize(
    "options, name",
    [
        ({"similarity": {"ncc": LEARNED}}, "similarity's factor of 'ncc'"),
        ({"weights": (LEARNED, 1, 1, 1)}, "weights"),
        ({"weights": LEARNED.expand(4)}, "weights"),
        ({"spacing": LEARNED}, "spacing"),
        ({"spacing": (1, LEARNED)}, "spacing"),
        ({"threshold": LEARNED / 4}, "threshold"),
    ],
)
def test_numbers_that_want_a_gradient_are_refused(options, name):
    with pytest.raises(NotImplementedError, match=rf"no gradient to {name}: pass its \.detach\(\)"):
        registration_objective(*images(), field(), **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"similarity": "mi"}, "similarity must be one of 'ssd', 'ncc', 'lncc'"),
        ({"window": 4}, "window must be odd and positive, got 4"),
        ({"similarity": {}}, "similarity must name at least one measure"),
        ({"similarity": {"ncc": math.inf}}, "similarity must have finite factors, got inf"),
        ({"penalty": "log2", "threshold": 1.5}, "threshold must be below 1 with penalty='log2'"),
        ({"weights": (1, 2, 3)}, "weights must be a preset or 4 numbers"),
        ({"weights": (1, 2, 3, -1)}, "weights must be a preset or 4 numbers"),
        ({"padding": "reflect"}, "padding must be one of"),
        ({"penalty": "none"}, "penalty must be one of"),
        ({"mask": torch.ones(1, 1, 3, 3)}, "mask must be"),
        ({"similarity": "pls", "eps_moving": -1.0}, "eps_moving must be positive"),
        ({"displacement": field(2, (12, 14))}, "displacement must be .* on the grid of fixed"),
        ({"moving": torch.zeros(2, 3, 12, 13)}, "moving must have the samples and channels"),
        ({"moving": torch.zeros(2, 1, 0, 13)}, "moving must have voxels to read"),
    ],
)
def test_errors_name_the_argument(changes, message):
    moving, fixed = images()
    arguments = {"moving": moving, "fixed": fixed, "displacement": field(), **changes}
    with pytest.raises(ValueError, match=message):
        registration_objective(**arguments)


@every_measure
def test_an_empty_grid_costs_what_its_parts_cost(name):
    moving, fixed = images(2, 1, (0, 5))
    terms = registration_objective(moving, fixed, field(2, (0, 5)), name)
    expected = registration_objective_reference(moving, fixed, field(2, (0, 5)), name)
    assert all(torch.equal(own, other) for own, other in zip(terms[:5], expected[:5], strict=True))


def test_it_is_a_named_tuple():
    terms = registration_objective(*images(), field())
    assert isinstance(terms, RegistrationObjective)
    assert terms._fields == (
        *("total", "similarity", "diffusion", "bending", "determinant", "warped"),
    )
