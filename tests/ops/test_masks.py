"""Weight 0 is never read: not by an operator, its gradient, its reference or a loss."""

import pytest
import torch
from cases import CASES, generator, uniform

from diffreg import losses, ops
from diffreg.ops._objective import MEASURES

BAD = pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
MASKED = [case for case in CASES if case.masked and case.operator != "registration_objective"]
SIZE = (14, 19)
LOSSES = {
    "SSD": losses.SSD(),
    "NCC": losses.NCC(),
    "LNCC": losses.LNCC(window=3),
    "PLS": losses.PLS(),
    "NGF": losses.NGF(0.1, 0.1),
    "MI": losses.MI(bins=8),
    "Dice": losses.Dice(),
}


def part(dtype=torch.float64):
    """Weights 0, 1/2 and 1; a third of them is 0, in one piece and alone."""
    weights = (torch.arange(SIZE[0] * SIZE[1]).reshape(1, 1, *SIZE) % 5).clamp(max=2) / 2
    weights[..., :6] = 0
    return weights.to(dtype).expand(2, -1, -1, -1).clone()


def filled(image, mask, value):
    """Every third voxel of weight 0, in the first channel, holds the value."""
    image = image.clone()
    outside = (mask == 0).nonzero()[::3]
    image[outside[:, 0], 0, outside[:, 2], outside[:, 3]] = value
    return image


def pair(dtype=torch.float64):
    shape = (2, 2, *SIZE)
    return [(0.5 + 0.5 * uniform(shape, dtype, seed)).clamp(0, 1) for seed in (1, 2)]


def value_and_gradients(function, inputs):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    values = function(*inputs)
    values = (values,) if isinstance(values, torch.Tensor) else values
    total = sum(value.sum() for value in values)
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    return [*values, *(g for g in gradients if g is not None)]


def check_equal(actual, expected):
    assert all(torch.isfinite(t).all() for t in (*actual, *expected))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def function_of(case, reference):
    name = case.operator + ("_reference" if reference else "")
    options = {"eps_warped": 0.3, "eps_fixed": 0.2} if case.operator.startswith("par") else {}
    return lambda *images: getattr(ops, name)(
        *images, **{**case.options, **options}, mask=part(images[0].dtype)
    )


@BAD
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.name)
def test_what_is_hidden_counts_as_0_and_has_no_gradient(case, reference, bad):
    images = pair()[: len(case.differentiable)]
    mask, function = part(), function_of(case, reference)
    actual = value_and_gradients(function, [filled(i, mask, bad) for i in images])
    expected = value_and_gradients(function, [filled(i, mask, 0.0) for i in images])
    hole = filled(torch.zeros_like(images[0]), mask, 1.0) == 1
    for gradient in actual[-sum(case.differentiable) :]:
        assert not gradient[hole].any()
    expected = [t.masked_fill(hole, 0) if t.shape == hole.shape else t for t in expected]
    check_equal(actual, expected)


@BAD
@pytest.mark.parametrize("name", ["SSD", "NCC", "MI", "Dice"])
def test_a_measure_of_single_voxels_never_reads_weight_0(name, bad):
    """Whatever stands there: value and gradient are the same."""
    images, mask = pair(), part()
    other = [filled(i, mask, bad) for i in images]
    far = [filled(i, mask, 1e6) for i in images]
    found = [value_and_gradients(lambda a, b: LOSSES[name](a, b, mask), p) for p in (images, other)]
    check_equal(*found)
    if name != "NCC":  # its moments in double hold fewer digits there
        check_equal(found[0], value_and_gradients(lambda a, b: LOSSES[name](a, b, mask), far))


@BAD
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_a_warped_image_trains_past_what_is_hidden(name, bad):
    """The gradient to the displacement, through the warp, is finite too."""
    (moving, fixed), mask = pair(), part()
    u = (0.3 * uniform((2, 2, *SIZE), torch.float64, 3)).abs() + 0.05
    u[:, :, -1] = u[..., -1] = -0.4  # inside
    hole = torch.zeros(2, 1, *SIZE, dtype=torch.bool)
    hole[..., 2] = True  # every voxel that reads it has weight 0: 1 and 2

    def loss(value):
        image = moving.masked_fill(hole, value)
        return lambda u: LOSSES[name](ops.warp(image, u), fixed, mask)

    actual = value_and_gradients(loss(bad), [u])
    assert all(torch.isfinite(t).all() for t in actual)
    if name in ("SSD", "NCC", "MI", "Dice"):
        check_equal(actual, value_and_gradients(loss(0.5), [u]))


def objective(name, reference=False):
    function = ops.registration_objective_reference if reference else ops.registration_objective
    return lambda moving, fixed, u: function(moving, fixed, u, name, mask=part())[:5]


def hidden_pair(bad):
    """NaN in fixed where the weight is 0, and in moving where only such voxels read it."""
    moving, fixed = pair()
    u = (0.2 * uniform((2, 2, *SIZE), torch.float64, 3)).abs() + 0.05
    moving[:, 0, :, 2] = bad
    return moving, filled(fixed, part(), bad), u


@BAD
@pytest.mark.parametrize("name", MEASURES)
def test_the_objective_never_reads_weight_0(name, bad):
    images = hidden_pair(bad)
    fused = value_and_gradients(lambda u: objective(name)(*images[:2], u), images[2:])
    reference = value_and_gradients(lambda u: objective(name, True)(*images[:2], u), images[2:])
    assert all(torch.isfinite(t).all() for t in fused)
    for a, e in zip(fused, reference, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)
    composed = value_and_gradients(objective(name), images)  # gradients to the images too
    assert all(torch.isfinite(t).all() for t in composed)
    torch.testing.assert_close(composed[-1], fused[-1], rtol=1e-9, atol=1e-9)
    if name in ("ssd", "ncc"):
        plain = [*hidden_pair(0.5)[:2]]
        check_equal(fused, value_and_gradients(lambda u: objective(name)(*plain, u), images[2:]))


@pytest.mark.core  # the plain warp reads what it gives weight 0
@BAD
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(9, 21), (5, 6, 19)], ids=str)
@pytest.mark.parametrize("name", MEASURES)
def test_a_hidden_voxel_beside_a_number_that_is_none_has_no_gradient(name, size, channels, bad):
    """Its warped value is finite, its derivative is not: it passes nothing on."""
    shape = (2, channels, *size)
    moving, fixed = (0.5 + 0.5 * uniform(shape, torch.float64, seed) for seed in (1, 2))
    at = [slice(None), 0, *(n // 2 for n in size)]
    moving[tuple(at)] = bad
    mask = torch.ones(2, 1, *size, dtype=torch.float64)
    mask[(..., *(slice(n // 2 - 1, n // 2 + 2) for n in size))] = 0
    u = torch.zeros(2, len(size), *size, dtype=torch.float64)
    loss = lambda m, u: ops.registration_objective(m, fixed, u, name, mask=mask)[:5]  # noqa: E731
    fused = value_and_gradients(lambda u: loss(moving, u), [u])
    assert all(torch.isfinite(t).all() for t in fused)
    composed = value_and_gradients(loss, [moving, u])
    torch.testing.assert_close(fused[-1], composed[-1], rtol=1e-9, atol=1e-12)
    _, direct = ops.registration_objective_value_and_gradient(moving, fixed, u, name, mask=mask)
    total = value_and_gradients(lambda u: loss(moving, u)[0], [u])
    torch.testing.assert_close(direct, total[-1], rtol=1e-9, atol=1e-12)


@BAD
@pytest.mark.parametrize("name", MEASURES)
def test_a_sample_that_nobody_weighs_has_no_gradient(name, bad):
    """Alone or beside others, through the total or a term."""
    (moving, fixed), u = pair(), 0.1 * uniform((2, 2, *SIZE), torch.float64, 3)
    moving[0, 0, 3, 4] = bad
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def gradient(samples, *which):
        leaf = u[samples].clone().requires_grad_()
        terms = ops.registration_objective(moving[samples], fixed[samples], leaf, name)
        loss = sum((getattr(terms, each) * weights[samples]).sum() for each in which)
        return torch.autograd.grad(loss + terms.bending.sum(), leaf)[0]

    for which in (["similarity"], ["total"], ["total", "similarity"]):
        both = gradient(slice(0, 2), *which)
        assert both.isfinite().all() and both[0].any()
        alone = [gradient(slice(n, n + 1), *which) for n in range(2)]
        torch.testing.assert_close(both, torch.cat(alone), rtol=1e-12, atol=1e-14)
    leaf = u.clone().requires_grad_()
    total = ops.registration_objective(moving, fixed, leaf, name).total
    (found,) = torch.autograd.grad((weights * total).sum(), leaf)
    assert found.isfinite().all() and not found[0].any() and found[1].any()


@BAD
@pytest.mark.parametrize("name", losses.SIMILARITIES)
def test_the_objective_as_a_module_and_for_optimisers(name, bad):
    moving, fixed, u = (tensor[:1] for tensor in hidden_pair(bad))
    mask, loss = part()[:1], losses.Objective(name)
    total, gradient = value_and_gradients(lambda u: loss(moving, fixed, u, mask).total, [u])
    assert torch.isfinite(total) and torch.isfinite(gradient).all()
    value, other = loss.value_and_gradient_of(moving, fixed, mask)(u)
    assert value == pytest.approx(total.item(), rel=1e-9)
    torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


def test_the_warped_image_comes_back_as_it_is():
    moving, fixed, u = hidden_pair(torch.nan)
    for needed in (False, True):
        terms = ops.registration_objective(
            moving, fixed, u.clone().requires_grad_(needed), "pls", mask=part(), return_warped=True
        )
        torch.testing.assert_close(
            terms.warped, ops.warp(moving, u), rtol=0, atol=0, equal_nan=True
        )
        assert terms.warped.isnan().any()


def test_double_backward_past_what_is_hidden_is_finite():
    moving, fixed, u = hidden_pair(torch.nan)
    u.requires_grad_()
    total = ops.registration_objective(moving, fixed, u, "lncc", mask=part()).total.sum()
    (gradient,) = torch.autograd.grad(total, u, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), u)
    assert torch.isfinite(second).all() and second.any()


@pytest.mark.parametrize("name", MEASURES)
def test_what_counts_is_not_hidden(name):
    """NaN under a weight > 0 is NaN in the result."""
    (moving, fixed), u = pair(), torch.zeros(2, 2, *SIZE, dtype=torch.float64)
    for image in (moving, fixed):
        kept, image[0, 0, 7, 12] = image[0, 0, 7, 12].clone(), torch.nan
        weights = part()
        weights[0, 0, 7, 12] = 0.5
        terms = ops.registration_objective(moving, fixed, u, name, mask=weights)
        assert terms.total[0].isnan() and terms.total[1].isfinite()
        image[0, 0, 7, 12] = kept


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_mutual_information_of_what_is_not_finite_is_nan(bad):
    warped, fixed = pair()
    for image in (warped, fixed):
        kept, image[0, 0, 3, 3] = image[0, 0, 3, 3].clone(), bad
        value = ops.mutual_information(warped, fixed)
        assert value[0].isnan() and value[1].isfinite()
        image[0, 0, 3, 3] = kept


def test_a_gradient_of_0_passes_nothing_on():
    moving = torch.tensor([[[[torch.nan, 1.0, 2.0, torch.inf]]]], requires_grad=True)
    u = torch.tensor([0.0, 0.25]).reshape(1, 2, 1, 1).repeat(1, 1, 1, 4)
    u[..., 3] = torch.nan
    u.requires_grad_()
    for padding in ("border", "zeros"):
        warped = ops.warp(moving, u, padding=padding)
        to_moving, to_u = torch.autograd.grad(warped[..., 1].sum(), [moving, u])
        assert to_moving.tolist() == [[[[0, 0.75, 0.25, 0]]]]
        assert to_u[0, 1, 0].tolist() == [0, 1, 0, 0] and not to_u[..., [0, 2, 3]].any()


@pytest.mark.parametrize("weight", [-1.0, -1e-30, torch.nan, -torch.inf], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_weights_that_are_no_weights_are_refused(name, weight):
    mask = part()
    mask[0, 0, 3, 4] = weight
    with pytest.raises(ValueError, match="mask must hold weights >= 0, got"):
        LOSSES[name](*pair(), mask)
    for case in MASKED:
        images = pair()[: len(case.differentiable)]
        with pytest.raises(ValueError, match="mask must hold weights >= 0"):
            getattr(ops, case.operator)(*images, **case.options, mask=mask)
    moving, fixed = pair()
    with pytest.raises(ValueError, match="mask must hold weights >= 0"):
        ops.registration_objective(moving, fixed, 0 * pair()[0], mask=mask)


def test_weights_are_not_looked_at_where_there_are_none():
    """Under torch.compile and vmap a mask is taken as it is."""
    image, mask = torch.rand(1, 1, 8, 8, generator=generator()), torch.ones(1, 1, 8, 8)
    compiled = torch.compile(ops.correlation, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(image, image.flip(2), mask), ops.correlation(image, image.flip(2)))
    masks = torch.stack([mask, 2 * mask])
    mapped = torch.func.vmap(lambda m: ops.correlation(image, image.flip(2), m))(masks)
    assert mapped.shape == (2, 1)
