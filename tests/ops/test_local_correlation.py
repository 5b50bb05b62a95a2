"""local_correlation: goldens, one example by hand, the window cut at the border, the guard."""

import golden
import pytest
import torch

from diffreg.ops import local_correlation, local_correlation_reference

GOLDENS = [
    (3, 0.795157323139, 0.410247407226),
    (5, 0.852863720354, 0.221936477549),
    (9, 0.908176762701, 0.0988482648323),
]


@pytest.mark.parametrize("function", [local_correlation, local_correlation_reference])
@pytest.mark.parametrize(("window", "value", "norm"), GOLDENS)
def test_golden(function, window, value, norm):
    warped = golden.warped().requires_grad_()
    result = function(warped, golden.fixed(), window)
    (gradient,) = torch.autograd.grad(result, warped)
    assert result.item() == pytest.approx(value, abs=1e-12)
    assert gradient.norm().item() == pytest.approx(norm, abs=1e-12)


def test_by_hand():
    # One row, window 3: {0, 1}, {0, 1, 1}, {1, 1} of W against themselves. In the first two windows
    # c^2 = v r costs 0, the flat one costs 1.
    row = torch.tensor([0.0, 1.0, 1.0]).reshape(1, 1, 1, 3)
    torch.testing.assert_close(local_correlation(row, row, 3), torch.tensor([1 / 3]))


def test_a_flat_window_has_no_gradient_of_its_own_variance():
    flat = torch.full((1, 1, 5, 5), 0.5, dtype=torch.float64, requires_grad=True)
    value = local_correlation(flat, golden.fixed()[..., :5, :5], 3)
    (gradient,) = torch.autograd.grad(value, flat)
    assert value.item() == 1.0
    assert gradient.abs().max().item() == 0.0


@pytest.mark.core
def test_images_in_a_line_are_never_below_nothing():
    """Rounding may take the squared correlation past 1."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 1, 3, 4, dtype=torch.float64, generator=generator)
    values = local_correlation(images, 0.3 * images + 0.1, 9)
    assert (values >= 0).all() and values.max() < 1e-12


@pytest.mark.parametrize("window", [1, 3, 7, 15, 101])
@pytest.mark.parametrize("size", [(19, 40), (70, 9), (5, 70, 6)], ids=str)  # the last in strips
def test_any_window_is_the_reference(size, window):
    generator = torch.Generator().manual_seed(window)
    draw = lambda n: torch.rand(2, n, *size, dtype=torch.float64, generator=generator)  # noqa: E731
    warped, fixed, mask = draw(2).requires_grad_(), draw(2).requires_grad_(), draw(1)
    upstream = torch.tensor([0.3, -2.0], dtype=torch.float64)
    for weights in (None, mask):
        value = local_correlation(warped, fixed, window, weights)
        expected = local_correlation_reference(warped, fixed, window, weights)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(value, (warped, fixed), upstream),
            torch.autograd.grad(expected, (warped, fixed), upstream),
            rtol=1e-9,
            atol=1e-12,
        )


def test_gradcheck_and_gradgradcheck_with_and_without_the_guard():
    generator = torch.Generator().manual_seed(0)
    warped = torch.rand(1, 1, 6, 7, dtype=torch.float64, generator=generator)
    warped[..., :3, :3] = 0.25 + 1e-3 * warped[..., :3, :3]  # a variance below the guard
    fixed = torch.rand(1, 1, 6, 7, dtype=torch.float64, generator=generator)
    corner = warped[..., :2, :2].var(correction=0)
    assert corner < 1e-5 < warped[..., 3:, 3:].var(correction=0)
    inputs = (warped.requires_grad_(), fixed.requires_grad_())
    function = lambda w, r: local_correlation(w, r, 3)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        (4, ValueError, "window must be odd and positive, got 4"),
        (0, ValueError, "window must be odd and positive, got 0"),
        (3.0, TypeError, "window must be an int, got float"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(window, error, message):
    image = torch.zeros(1, 1, 4, 4)
    with pytest.raises(error, match=message):
        local_correlation(image, image, window)


def test_the_mask_has_no_gradient_and_says_so():
    image = torch.rand(1, 1, 4, 4, requires_grad=True)
    mask = torch.ones(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no gradient to mask"):
        local_correlation(image, image.detach(), 3, mask).sum().backward()
