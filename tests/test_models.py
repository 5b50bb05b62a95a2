"""LU-net: its size, what it accepts, and that every pair is registered by itself."""

import pytest
import torch

from diffreg.models import MODELS, LUNet, LUNetConfig, build_model
from diffreg.models._upsampling import doubled


def network(**settings):
    torch.manual_seed(0)
    model = LUNet(LUNetConfig(**settings))
    torch.nn.init.normal_(model.head.weight, std=0.1)  # as if trained
    return model.eval()


def images(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=random), torch.rand(*shape, generator=random)


def test_the_parameters_are_counted():
    assert sum(p.numel() for p in LUNet().parameters()) == 122_178


def test_training_starts_at_the_identity_with_a_gradient():
    model = LUNet()
    displacement = model(*images(2, 1, 32, 24))
    assert displacement.abs().max() < 1e-3
    displacement.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 8), (17, 31), (64, 40)])
def test_any_size(size):
    displacement = network()(*images(2, 1, *size))
    assert displacement.shape == (2, 2, *size)
    assert torch.isfinite(displacement).all()


def test_padding_repeats_the_border():
    """Rows added by hand, copies of the last one, change nothing."""
    moving, fixed = images(1, 1, 12, 16)
    longer = [torch.cat([x, x[:, :, -1:].expand(-1, -1, 4, -1)], 2) for x in (moving, fixed)]
    model = network()
    torch.testing.assert_close(model(moving, fixed), model(*longer)[:, :, :12])


def test_a_pair_does_not_see_the_rest_of_its_batch():
    moving, fixed = images(3, 1, 24, 16)
    model = network().train()
    together = model(moving, fixed)
    for n in range(3):
        alone = model(moving[n : n + 1], fixed[n : n + 1])
        torch.testing.assert_close(alone, together[n : n + 1])


def test_the_head_is_float32_under_autocast():
    model = network()
    seen = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        displacement = model(*images(1, 1, 16, 16))
    assert displacement.dtype == torch.float32
    assert seen == [torch.float32]


def test_the_settings_make_the_network():
    model = build_model("lunet", widths=(4, 8))
    assert (model.name, model.config) == ("lunet", LUNetConfig(widths=(4, 8)))
    assert model(*images(1, 1, 10, 10)).shape == (1, 2, 10, 10)
    assert all(build_model(name).name == name for name in MODELS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": 4}, r"dimensions must be 2 \(images\) or 3 \(volumes\), got 4"),
        ({"widths": (8,), "half_resolution": True}, "half_resolution needs two widths or more"),
        ({"widths": ()}, "widths must be positive numbers of channels"),
        ({"widths": (8, 0)}, "widths must be positive numbers of channels"),
    ],
)
def test_settings_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        LUNetConfig(**settings)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of lunet.*, got 'net'"):
        build_model("net")


@pytest.mark.parametrize(
    ("moving", "fixed", "error", "message"),
    [
        ((1, 1, 8, 8), (1, 1, 8, 9), ValueError, r"shape of fixed, \[1, 1, 8, 9\], got \[1, 1, 8"),
        ((1, 2, 8, 8), (1, 2, 8, 8), ValueError, r"moving must be \(N, 1, H, W\), got \[1, 2, 8"),
        ((1, 1, 4, 8, 8), (1, 1, 4, 8, 8), ValueError, "register volumes slice by slice"),
        ((1, 1, 0, 8), (1, 1, 0, 8), ValueError, r"must be \(N, 1, H, W\), got \[1, 1, 0, 8\]"),
    ],
)
def test_images_are_refused_in_words(moving, fixed, error, message):
    with pytest.raises(error, match=message):
        LUNet()(torch.zeros(moving), torch.zeros(fixed))


def test_whole_numbers_are_refused():
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(TypeError, match=r"fixed must be a floating-point tensor, got torch\.int64"):
        LUNet()(image, image.long())


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (5, 4), (16, 9)], ids=str)
def test_doubling_is_torch_s_value_and_gradient(size):
    image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.interpolate(image, scale_factor=2.0, mode="bilinear")
    upstream = torch.randn_like(expected)
    assert torch.equal(doubled(image), expected)
    (own,) = torch.autograd.grad(doubled(image), image, upstream)
    (other,) = torch.autograd.grad(expected, image, upstream)
    torch.testing.assert_close(own, other)
    assert torch.autograd.gradgradcheck(doubled, image, upstream.requires_grad_())


def test_doubling_of_half_types_and_under_torch_func():
    image = torch.randn(2, 4, 6, 5, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(doubled(image).sum(), image)
    torch.testing.assert_close(gradient, torch.full_like(image, 4.0))
    images = torch.randn(3, 2, 4, 6, 5)
    each = torch.func.vmap(torch.func.grad(lambda x: doubled(x).square().sum()))(images)
    one_by_one = [torch.func.grad(lambda x: doubled(x).square().sum())(x) for x in images]
    torch.testing.assert_close(each, torch.stack(one_by_one))
