import pytest
import torch
from cases import uniform

from diffreg.fields import identity_grid
from diffreg.losses import Objective
from diffreg.ops import (
    deformation_energy,
    jacobian_determinant,
    jacobian_determinant_reference,
    warp,
)
from diffreg.registration import (
    descent,
    register_variational,
    variational,
    whiteness,
)
from diffreg.registration.pyramid import possible_levels
from diffreg.registration.regulariser import Regulariser
from diffreg.registration.unfolded import SMALLEST_DETERMINANT, is_unfolded

SIZE = (48, 56)


def texture(size=SIZE) -> torch.Tensor:
    """(1, 1, *S): blobs of several sizes, so that every direction of motion shows."""
    y, x = identity_grid(size, torch.float64)[0]
    centres = torch.rand(40, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    image = torch.zeros(size, dtype=torch.float64)
    for k, (a, b) in enumerate(centres.tolist()):
        distance = (y - a * size[0]) ** 2 + (x - b * size[1]) ** 2
        image += (-1) ** k * torch.exp(-distance / (3 + k % 4) ** 2)
    return ((image - image.min()) / (image.max() - image.min()))[None, None]


def known_warp(size=SIZE, amplitude=3.0) -> torch.Tensor:
    """(1, 2, *S): smooth, 0 at the border."""
    y, x = identity_grid(size, torch.float64)[0]
    y, x = y / (size[0] - 1), x / (size[1] - 1)
    bump = torch.sin(torch.pi * y) * torch.sin(torch.pi * x)
    return amplitude * torch.stack([bump, -bump * torch.cos(2 * y)])[None]


def pair():
    moving = texture()
    return moving, warp(moving, known_warp())


@pytest.fixture
def accepted(monkeypatch):
    """Every displacement that the line search accepts, with the objective before and after."""
    steps = []
    search = descent._search

    def spy(value_and_gradient, at, *rest):
        found = search(value_and_gradient, at, *rest)
        if found is not None:
            steps.append((at.value, found.displacement.clone(), found.value))
        return found

    monkeypatch.setattr(descent, "_search", spy)
    return steps


@pytest.mark.parametrize("similarity", ["ssd", "ncc", {"ncc": 1.0, "lncc": 0.2}], ids=str)
def test_recovers_a_known_warp(similarity):
    moving, fixed = pair()
    u = register_variational(moving, fixed, Objective(similarity))
    error = (u - known_warp()).norm(dim=1)
    assert known_warp().norm(dim=1).mean() > 1
    assert error.mean() < 0.5


def test_recovers_a_known_warp_across_contrasts():
    moving, fixed = pair()
    u = register_variational(moving, 1 - fixed**2, Objective("pls"))
    assert (u - known_warp()).norm(dim=1).mean() < 0.5


def test_single_precision_finds_the_same():
    moving, fixed = pair()
    double = register_variational(moving, fixed, levels=2, iterations=10)
    single = register_variational(moving.float(), fixed.float(), levels=2, iterations=10)
    assert single.dtype == torch.float32
    assert (single - double).abs().mean() < 0.05


def test_never_folds_even_without_a_price_on_folding(accepted):
    # Half an image against its mirror image, and nothing but similarity.
    moving = texture()
    objective = Objective("ssd", weights=(1000, 0.001, 0.001, 0))
    u = register_variational(moving, moving.flip(3), objective, levels=2, iterations=40)
    smallest = [jacobian_determinant_reference(step[1]).min().item() for step in accepted]
    assert len(smallest) > 10
    assert min(smallest) > 0
    assert min(smallest) < 0.2  # it did come close
    assert jacobian_determinant_reference(u).min() > 0


def test_every_accepted_step_lowers_the_objective(accepted):
    moving, fixed = pair()
    register_variational(moving, fixed, levels=2, iterations=20)
    assert len(accepted) > 10
    assert all(after < before for before, _, after in accepted)


def test_no_step_is_longer_than_the_largest(monkeypatch):
    lengths = []
    search = descent._search

    def spy(value_and_gradient, at, *rest):
        found = search(value_and_gradient, at, *rest)
        if found is not None:
            lengths.append((found.displacement - at.displacement).abs().max().item())
        return found

    monkeypatch.setattr(descent, "_search", spy)
    monkeypatch.setattr(descent, "LARGEST_STEP", 0.6)
    register_variational(*pair(), levels=1, iterations=20)
    assert lengths[0] <= descent.FIRST_STEP * (1 + 1e-12)
    assert 0.59 < max(lengths) <= 0.6 * (1 + 1e-12)


def test_a_determinant_within_rounding_of_a_fold_counts_as_folded():
    stretch = torch.zeros(1, 2, 4, 4)
    stretch[0, 0] = torch.arange(4.0).reshape(4, 1)
    assert is_unfolded(-0.99 * stretch)  # every determinant is 0.01
    assert not is_unfolded(-0.9999 * stretch)
    assert not is_unfolded(stretch * torch.nan)


def test_a_fold_between_positive_corners_is_seen():
    """By hand: from plane 0 to plane 1 of one cell the edges (1, 0), (0, 1) become (-1, 1/2),
    (3, -2): determinants of 1 and 1/2 at the corners, -3/8 half-way, where the edges are means."""
    y, x = identity_grid((2, 2))[0]
    u = torch.zeros(1, 3, 2, 2, 2)
    u[0, 1, 1], u[0, 2, 1] = 3 * x - 2 * y, y / 2 - 3 * x
    assert sorted(jacobian_determinant(u).flatten().tolist()) == [0.5] * 4 + [1.0] * 4
    assert not is_unfolded(u)
    assert is_unfolded(0.1 * u)


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 3, 1, 1, 1), (1, 3, 0, 4, 4), (0, 2, 4, 4)])
def test_where_there_is_no_cell_nothing_folds(shape):
    assert is_unfolded(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2, 1, 5), (1, 3, 1, 1, 5)])
def test_a_line_folds(shape):
    back = torch.zeros(shape)
    back[:, -1] = -2 * torch.arange(5.0)  # J = -1
    assert is_unfolded(back / 4) and not is_unfolded(back)


def test_the_regulariser_is_the_energies_second_derivative():
    # Away from the border, where neither notices that the other goes round or stops.
    weights, spacing = variational.Weights(60, 2.0, 3.0, 1.0), [1.5, 2.0]
    v = torch.zeros(1, 2, 40, 50, dtype=torch.float64)
    v[..., 5:-5, 5:-5] = uniform((1, 2, 30, 40), torch.float64)
    v.requires_grad_()
    energies = deformation_energy(v, spacing)
    energy = 2.0 * energies.diffusion + 3.0 * energies.bending
    gradient = torch.autograd.grad(energy, v)[0]
    v = v.detach()
    regulariser = Regulariser(v, spacing, weights)
    # The energies' means are over stencil positions, a few per cent fewer than voxels.
    assert (regulariser.solve_(gradient + 0.1 * v, 0.1) - v).norm() < 0.06 * v.norm()
    torch.testing.assert_close(regulariser.curvature(v), (v * gradient).sum())


def test_the_regulariser_saves_evaluations(monkeypatch):
    def after(iterations):
        u = register_variational(moving, fixed, Objective("ncc"), 1, iterations)
        return Objective("ncc")(moving, fixed, u).total

    moving, fixed = pair()
    with_it = after(10)
    monkeypatch.setattr(Regulariser, "solve_", lambda self, gradient, data: gradient.div_(data))
    assert with_it < after(30)


def test_an_unfolded_start_is_repaired_where_it_folds():
    folded = torch.zeros(1, 2, 12, 16, dtype=torch.float64)
    folded[0, 1, 4, 5] = -2.5
    start = variational._unfolded_start(folded)
    assert jacobian_determinant_reference(start).min() > SMALLEST_DETERMINANT
    assert start[0, 1, 4, 5] < -0.5 and not start[..., 9:, :].any()
    assert variational._unfolded_start(start) is start


def test_each_sample_is_registered_by_itself():
    moving, fixed = pair()
    swapped = register_variational(
        torch.cat([moving, fixed]), torch.cat([fixed, moving]), levels=2, iterations=10
    )
    alone = register_variational(fixed, moving, levels=2, iterations=10)
    assert swapped.shape == (2, 2, *SIZE)
    assert torch.equal(swapped[1:], alone)


def test_what_lies_outside_the_mask_does_not_pull():
    moving, fixed = pair()
    mask = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    mask[..., :28] = True
    spoiled = fixed.clone()
    spoiled[..., 40:] = uniform((1, 1, SIZE[0], 16), torch.float64)
    arguments = (None, 1, 20, mask)
    u, v = (register_variational(moving, image, *arguments) for image in (fixed, spoiled))
    assert torch.equal(u, v)


def test_every_level_has_the_spacing_of_its_voxels(monkeypatch):
    spacings = []
    with_spacing = Objective.with_spacing

    def spy(objective, spacing, weights):
        spacings.append(spacing)
        return with_spacing(objective, spacing, weights)

    monkeypatch.setattr(Objective, "with_spacing", spy)
    image = texture((64, 65))
    register_variational(image, image.flip(3), Objective(spacing=(1.5, 2.0)), iterations=1)
    # 64 -> 32 -> 16 rows and 65 -> 33 -> 17 columns over the same extent
    assert spacings == [[6.0, 2 * 65 / 17], [3.0, 2 * 65 / 33], [1.5, 2.0]]


@pytest.mark.parametrize("size", [(17, 33), (5, 7), (1, 20), (1, 1)], ids=str)
def test_odd_and_tiny_sizes(size):
    image = uniform((1, 1, *size), torch.float32)
    u = register_variational(image, image.flip(3), iterations=3)
    assert u.shape == (1, 2, *size)
    assert u.isfinite().all()


def test_an_empty_batch():
    image = torch.zeros(0, 1, 20, 24)
    assert register_variational(image, image).shape == (0, 2, 20, 24)


def test_constant_images_stay_where_they_are():
    flat = torch.ones(1, 1, 20, 24)
    assert not register_variational(flat, texture((20, 24)).float()).any()


def test_progress_never_goes_back_and_ends_at_the_end():
    moving, fixed = pair()
    calls = []
    both = torch.cat([moving, fixed]), torch.cat([fixed, moving])
    register_variational(*both, levels=2, iterations=5, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {20}  # 2 samples, 2 levels, 5 iterations
    assert done == sorted(done)
    assert done[-1] == 20


@pytest.mark.parametrize(
    "shape, levels", [((15, 99), 1), ((32, 99), 2), ((63, 99), 2), ((64, 99), 3)]
)
def test_no_level_is_smaller_than_16_voxels(shape, levels):
    assert possible_levels(torch.Size(shape), 3) == levels


IMAGE = torch.zeros(1, 1, 20, 24)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((None, IMAGE), TypeError, "moving must be a torch.Tensor, got NoneType"),
        ((IMAGE[0], IMAGE[0]), ValueError, r"moving must be \(N, C, H, W\) .*, got \[1, 20, 24\]"),
        (
            (IMAGE[..., 1:], IMAGE),
            ValueError,
            r"fixed must have the shape of moving, \[1, 1, 20, 23\], got \[1, 1, 20, 24\]",
        ),
        ((IMAGE.int(), IMAGE.int()), TypeError, "moving must be .*float64, got torch.int32"),
        (
            (IMAGE, IMAGE, None, 0),
            ValueError,
            "levels and iterations must be whole numbers from 1, got 0, ",
        ),
        ((IMAGE, IMAGE, None, 1, 0), ValueError, "must be whole numbers from 1, got 1, 0"),
        ((IMAGE, IMAGE, None, 2.5), ValueError, "must be whole numbers from 1, got 2.5, "),
        ((IMAGE, IMAGE, None, 1, "20"), ValueError, "must be whole numbers from 1, got 1, 20"),
        ((IMAGE, IMAGE, None, 1, (3, 2.5)), ValueError, r"must be whole numbers .* got 1, \(3, 2"),
        ((IMAGE, IMAGE, None, 1, []), ValueError, r"must be whole numbers from 1, got 1, \[\]"),
        (
            (*(IMAGE, IMAGE, None, 1, 1), *7 * [None], -1),
            ValueError,
            "composed_steps .* from 0, got -1",
        ),
        (
            (*(IMAGE, IMAGE, None, 1, 1), *7 * [None], []),
            ValueError,
            r"composed_steps .* from 0, got \[\]",
        ),
        ((IMAGE, IMAGE, None, 1, 1, IMAGE[0]), ValueError, r"mask must be .* got \[1, 20, 24\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        register_variational(*arguments)


def test_sums_over_bins_have_an_order_on_a_gpu_too():
    """There torch.bincount has none, and raises under torch.use_deterministic_algorithms(True)."""
    bins, values = torch.randint(32, (500,)), torch.rand(500, dtype=torch.float64)
    found = [whiteness._sums(Elsewhere(bins) if far else bins, values) for far in (False, True)]
    torch.testing.assert_close(*found)


class Elsewhere(torch.Tensor):
    """One that says that it is not on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cpu = False


@pytest.mark.parametrize("name", ["moving", "fixed"])
def test_images_that_are_not_finite_are_refused(name):
    images = {each: torch.rand(1, 1, 8, 8) for each in ("moving", "fixed")}
    images[name][0, 0, 3, 4] = torch.nan
    with pytest.raises(ValueError, match=f"{name} must be finite, 1 of its values"):
        register_variational(**images)
