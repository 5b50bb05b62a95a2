"""register_variational from a displacement that is given: repaired where it folds, never worse."""

import pytest
import torch
from fields.drawn import smooth
from test_variational import SIZE, known_warp, pair

from diffreg.fields import make_diffeomorphic
from diffreg.losses import Objective
from diffreg.ops import jacobian_determinant, jacobian_determinant_reference
from diffreg.registration import variational
from diffreg.registration.unfolded import SMALLEST_DETERMINANT, START_DETERMINANT
from diffreg.registration.variational import register_variational

FOLDS = smooth(SIZE, 14.0, 0).double()
SPIKE = torch.zeros(1, 2, *SIZE, dtype=torch.float64)
SPIKE[0, 0, 20, 20] = 1.5  # beyond its neighbour
LAYOUTS = (torch.contiguous_format, torch.channels_last)
CHEAP_FOLDS = Objective("ssd", weights=(1000, 0.001, 0.001, 0))


@pytest.fixture
def begun(monkeypatch):
    """Where the optimiser begins; it takes no step."""
    starts = []

    def still(value_and_gradient, start, *rest):
        starts.append(start)
        return start

    monkeypatch.setattr(variational, "minimise", still)
    return starts


def total(objective, u):
    return objective(*pair(), u).total.item()


@pytest.mark.parametrize("objective", [Objective("ncc"), CHEAP_FOLDS], ids=["ncc", "cheap folds"])
@pytest.mark.parametrize(
    "start", [0 * SPIKE, 0.9 * known_warp(), SPIKE, FOLDS], ids=["zero", "near", "spike", "folds"]
)
@pytest.mark.parametrize("steps", [1, 5])
def test_it_folds_nothing_and_is_never_worse_than_its_start(objective, start, steps):
    begin = start if variational.is_unfolded(start) else repaired(start)
    u = register_variational(*pair(), objective, iterations=steps, start=start)
    assert jacobian_determinant_reference(u).min() > 0
    assert total(objective, u) < total(objective, begin)


def repaired(start):
    return make_diffeomorphic(start, START_DETERMINANT).displacement


def test_how_a_start_lies_in_memory_changes_nothing():
    """A network's has its components side by side, and no flat view."""
    start, steps = 0.5 * known_warp(), {"iterations": 6}
    beside = start.clone(memory_format=torch.channels_last)
    assert not beside.is_contiguous()
    found = [
        register_variational(*pair(), Objective("ncc"), start=u, **steps) for u in (start, beside)
    ]
    assert torch.equal(*found)


def test_a_good_start_saves_steps():
    objective = Objective("ncc")
    near = register_variational(*pair(), objective, iterations=3, start=0.9 * known_warp())
    far = register_variational(*pair(), objective, levels=1, iterations=3)
    assert (near - known_warp()).norm(dim=1).mean() < 0.3 < (far - known_warp()).norm(dim=1).mean()


def test_a_start_that_does_not_fold_is_where_it_begins(begun):
    u = register_variational(*pair(), start=0.9 * known_warp())
    assert len(begun) == 1
    assert torch.equal(begun[0], u) and torch.equal(u, 0.9 * known_warp())


def test_only_the_cells_that_fold_are_moved(begun):
    register_variational(*pair(), start=SPIKE + known_warp())
    (start,) = begun
    assert variational.is_unfolded(start)
    i, j = (start != SPIKE + known_warp())[0].any(0).nonzero(as_tuple=True)
    assert 0 < len(i) <= 12
    assert (i - 20).abs().max() <= 2 and (j - 20).abs().max() <= 2


def test_determinants_within_the_margin_are_moved(begun):
    start = torch.zeros(1, 2, *SIZE, dtype=torch.float64)
    start[0, 0, 30:] = -(1 - SMALLEST_DETERMINANT / 2)
    assert jacobian_determinant(start).min() > 0
    register_variational(*pair(), start=start)
    assert jacobian_determinant(begun[0]).min() > START_DETERMINANT


def test_where_the_repair_is_not_enough_the_field_is_halved(begun, monkeypatch):
    def repairs_nothing(displacement, threshold):
        return make_diffeomorphic(0 * displacement)._replace(displacement=displacement)

    monkeypatch.setattr(variational, "make_diffeomorphic", repairs_nothing)
    register_variational(*pair(), start=SPIKE)
    assert torch.equal(begun[0], SPIKE / 2)


@pytest.mark.parametrize("given", [known_warp(), FOLDS], ids=["unfolded", "folds"])
def test_the_start_is_left_as_it_is(given):
    start = given.clone().requires_grad_()
    u = register_variational(*pair(), iterations=2, start=start)
    assert torch.equal(start, given) and not u.requires_grad


def test_there_is_one_level(monkeypatch):
    spacings, calls = [], []
    with_spacing = Objective.with_spacing

    def spy(objective, spacing, weights):
        spacings.append(spacing)
        return with_spacing(objective, spacing, weights)

    monkeypatch.setattr(Objective, "with_spacing", spy)
    objective = Objective("ncc", spacing=(1.5, 2.0))
    register_variational(
        *pair(),
        objective,
        levels=3,
        iterations=4,
        progress=lambda *call: calls.append(call),
        start=0.9 * known_warp(),
    )
    assert spacings == [[1.5, 2.0]]
    assert calls[-1] == (4, 4)


def test_every_sample_has_its_own_start():
    moving, fixed = pair()
    both = torch.cat([moving, fixed]), torch.cat([fixed, moving])
    starts = torch.cat([0.5 * known_warp(), SPIKE])
    u = register_variational(*both, iterations=3, start=starts)
    alone = register_variational(fixed, moving, iterations=3, start=SPIKE)
    assert torch.equal(u[1:], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_start_of_another_type(dtype):
    moving, fixed = (image.float() for image in pair())
    u = register_variational(moving, fixed, iterations=2, start=FOLDS.to(dtype))
    assert u.dtype == torch.float32
    assert jacobian_determinant_reference(u).min() > 0


def test_an_empty_batch():
    image, start = torch.zeros(0, 1, 20, 24), torch.zeros(0, 2, 20, 24)
    assert register_variational(image, image, start=start).shape == (0, 2, 20, 24)


def test_a_row_has_no_cells():
    image = torch.rand(1, 1, 1, 20, generator=torch.Generator().manual_seed(0))
    u = register_variational(image, image.flip(3), iterations=2, start=torch.ones(1, 2, 1, 20))
    assert u.shape == (1, 2, 1, 20) and u.isfinite().all()


IMAGE = torch.zeros(2, 1, 20, 24)
START = torch.zeros(2, 2, 20, 24)


@pytest.mark.parametrize(
    "start, error, message",
    [
        (START[0], ValueError, r"start must be .* = \[2, 2, 20, 24\], got \[2, 20, 24\]"),
        (START[:1], ValueError, r"start must be .* = \[2, 2, 20, 24\], got \[1, 2, 20, 24\]"),
        (START[..., 1:], ValueError, r"start must be .*, got \[2, 2, 20, 23\]"),
        (START[:, :1], ValueError, r"start must be .*, got \[2, 1, 20, 24\]"),
        (START.int(), TypeError, "start must be .*float64, got torch.int32"),
        (START.numpy(), TypeError, r"start must be a torch\.Tensor, got ndarray"),
        (START + torch.nan, ValueError, "start must be finite"),
        (START + torch.inf, ValueError, "start must be finite"),
        (START.to("meta"), ValueError, "start must be on the device of fixed, cpu, got meta"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(start, error, message):
    with pytest.raises(error, match=message):
        register_variational(IMAGE, IMAGE, start=start)
