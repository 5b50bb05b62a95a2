"""The network that is shown edges: no contrast changes what it finds; what pulls it is right."""

import pytest
import torch

from diffreg.fields import compose
from diffreg.models import build_model
from diffreg.models._edges import _means, averaged, edges, force
from diffreg.models.lunet import _continued, _padded
from diffreg.ops import warp
from diffreg.training.checkpoint import write_checkpoint
from diffreg.training.config import Config
from diffreg.training.continuing import weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
every_dimension = pytest.mark.parametrize("dimensions", [2, 3])
every_half = pytest.mark.parametrize("half", [False, True])


def network(dimensions, half=False, **settings):
    torch.manual_seed(0)
    found = build_model(
        "lunet", dimensions=dimensions, edges=True, half_resolution=half, widths=(4, 8), **settings
    )
    torch.nn.init.normal_(found.head.weight, std=0.1)
    return found


def ball(dimensions, shift=0.0, size=24):
    axes = [torch.arange(size) - size / 2 for _ in range(dimensions)]
    axes[0] = axes[0] - shift
    squared = sum(axis * axis for axis in torch.meshgrid(*axes, indexing="ij"))
    return torch.sigmoid(6 - squared.sqrt())[None, None]


@every_dimension
def test_entries_by_hand(dimensions):
    """Of a ramp every slope is the mean one: n = 1 / sqrt 2 along it; the border has half of it."""
    ramp = torch.arange(8.0).reshape(8, *[1] * (dimensions - 1)).expand((8,) * dimensions)
    found = edges(ramp[None, None])
    assert found.shape == (1, dimensions * (dimensions + 1) // 2, *(8,) * dimensions)
    mean = (6 + 2 * 0.5) / 8
    expected = 1 / (1 + mean**2)
    torch.testing.assert_close(found[0, 0, 1:-1], torch.full_like(found[0, 0, 1:-1], expected))
    assert not found[0, 1:].any()


@every_dimension
@every_half
def test_no_contrast_changes_what_is_found(dimensions, half):
    model, moving, fixed = network(dimensions, half), ball(dimensions), ball(dimensions, 1.0)
    expected = model(moving, fixed)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(model(3 - 2 * moving, fixed), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model(moving, 0.2 - 0.1 * fixed), expected, rtol=1e-3, atol=1e-4)


@every_dimension
def test_a_ball_is_pulled_to_where_it_is(dimensions):
    """The moving one lies half a voxel up the first axis: there the fixed one finds it."""
    pull = force(edges(ball(dimensions, 0.5)), edges(ball(dimensions)))
    assert pull.shape == (1, dimensions, *(24,) * dimensions)
    strongest = pull[:, 0].abs().flatten().topk(40).indices
    along = pull[:, 0].flatten()[strongest]
    assert (along > 0).double().mean() > 0.9 and along.mean() > 0.1
    assert pull[:, 1].mean().abs() < 0.1 * pull[:, 0].mean()
    assert not force(edges(ball(dimensions)), edges(ball(dimensions))).any()


@every_dimension
@every_half
def test_any_size_and_flat_images(dimensions, half):
    model = network(dimensions, half)
    for size in [(1, 1, 1), (5, 8, 6), (17, 9, 12)]:
        images = torch.rand(2, 2, 1, *size[:dimensions])
        assert model(*images).shape == (2, dimensions, *size[:dimensions])
    flat = torch.zeros(1, 1, *(8,) * dimensions, requires_grad=True)
    model(flat, flat).square().sum().backward()
    assert model(flat, flat).isfinite().all() and flat.grad.isfinite().all()


def test_a_level_that_is_computed_anew_gives_the_same_bits():
    images = torch.rand(2, 1, 1, 12, 16, 8)
    gradients = []
    for anew in (False, True):
        model = network(3, half=True)
        model.activation_checkpointing = anew
        model(*images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@every_dimension
@every_half
def test_a_second_pass_goes_on_from_the_warped_image(dimensions, half):
    images = torch.rand(2, 2, 1, *(12, 9, 16)[:dimensions])
    once, twice = network(dimensions, half), network(dimensions, half, passes=2)
    twice.load_state_dict(once.state_dict())
    first = once(*images)
    more = once(warp(images[0], first), images[1])
    torch.testing.assert_close(twice(*images), compose(first, more))
    with pytest.raises(ValueError, match="passes must be a whole number >= 1, got 0"):
        network(dimensions, passes=0)


def test_weights_fit_any_number_of_passes_and_no_network_without_edges(tmp_path):
    settings = {"dimensions": 2, "widths": [4, 8], "edges": True}
    weights = network(2).state_dict()
    contents = {"config": Config.from_dict({"model": settings}).to_dict(), "weights": weights}
    write_checkpoint(tmp_path / "once.pt", contents)
    start = str(tmp_path / "once.pt")
    found = weights_of(start, Config.from_dict({"model": settings | {"passes": 3}}))
    assert all(torch.equal(found[name], values) for name, values in weights.items())
    with pytest.raises(ValueError, match=r"has edges = True, and .model. has edges = False$"):
        weights_of(start, Config.from_dict({"model": settings | {"edges": False}}))


@every_dimension
def test_means_of_a_gpu_are_those_of_a_cpu(dimensions):
    x = torch.rand(2, 3, *(4, 6, 8)[:dimensions])
    torch.testing.assert_close(_means(x), averaged(x))


@every_dimension
def test_a_border_that_a_gpu_continues_is_that_of_a_cpu(dimensions):
    """Where a gradient comes back: torch's adds it in any order there."""
    x = torch.rand(2, 3, *(5, 8, 7)[:dimensions], requires_grad=True)
    found, expected = _continued(x, 4), _padded(x, 4)
    assert torch.equal(found, expected)
    upstream = torch.rand_like(found)
    gradients = [torch.autograd.grad(y, x, upstream)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    there = torch.empty(x.shape, device="meta", requires_grad=True)
    assert _padded(there, 4).grad_fn.name() == "CatBackward0"
