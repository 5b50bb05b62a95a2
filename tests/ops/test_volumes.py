"""The operators on volumes: goldens, references, peers, gradients, threads."""

import itertools

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from diffreg import ops
from diffreg.ops.jacobian_determinant import _bernstein, _edges

SIZES = [(1, 1, 1), (2, 2, 2), (1, 4, 3), (3, 2, 5), (5, 4, 17), (17, 3, 4)]
MOVING = (4, 7, 9)  # of another size than any fixed grid
DTYPES = [torch.float64, torch.float32]
SAMPLINGS = list(itertools.product(("linear", "cubic"), ("border", "zeros", "reflection")))


def drawn(*shape, dtype=torch.float64, seed=0):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype)


def field(size, dtype=torch.float64, scale=1.0, samples=2):
    return scale * (2 * drawn(samples, 3, *size, dtype=dtype, seed=1) - 1)


def mask_of(size, dtype):
    """Weights 0, 1/2 and 1."""
    return (2 * drawn(2, 1, *size, dtype=dtype, seed=2)).round() / 2


def assert_as_reference(operator, reference, *inputs):
    """Values, and gradients under one upstream gradient, of an operator and its reference."""
    results = []
    for function in (operator, reference):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        values = function(*leaves)
        values = [v for v in (values if isinstance(values, tuple) else (values,)) if v is not None]
        total = sum((v * (k + 1 + v.detach())).sum() for k, v in enumerate(values))
        results.append([*values, *torch.autograd.grad(total, leaves, allow_unused=True)])
    loose = {"rtol": 2e-4, "atol": 2e-5} if inputs[0].dtype == torch.float32 else {}
    for own, other in zip(*results, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, **loose)


def test_the_golden_energies_and_determinants():
    energies = ops.deformation_energy(golden.volume_displacement())
    assert energies.diffusion.item() == pytest.approx(0.218619325759, rel=1e-10)
    assert energies.bending.item() == pytest.approx(0.19600024339, rel=1e-10)
    assert energies.determinant.item() == pytest.approx(0.184277769906, rel=1e-10)
    corners = ops.jacobian_determinant(golden.volume_displacement())
    assert corners.shape == (1, 8, 3, 4, 5)
    assert corners.min().item() == pytest.approx(0.346728873401, rel=1e-10)
    assert corners.max().item() == pytest.approx(1.84302010411, rel=1e-10)


def test_affine_fields_by_hand():
    """No second derivative, and the determinant of I + M everywhere."""
    matrix = torch.tensor([[0.1, 0.2, 0.0], [-0.3, 0.2, 0.1], [0.05, 0.0, -0.25]]).double()
    points = torch.stack(
        torch.meshgrid(*(torch.arange(n).double() for n in (3, 4, 5)), indexing="ij")
    )
    u = torch.einsum("dk,kzyx->dzyx", matrix, points)[None]
    energies = ops.deformation_energy(u)
    assert energies.bending.item() == pytest.approx(0, abs=1e-25)
    assert energies.diffusion.item() == pytest.approx(matrix.square().sum().item())
    expected = torch.linalg.det(torch.eye(3) + matrix).item()
    for reduce in (None, "min", "mean", "bound"):
        values = ops.jacobian_determinant(u, reduce)
        torch.testing.assert_close(values, torch.full_like(values, expected))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestAgainstTheReferences:
    @pytest.mark.parametrize(("interpolation", "padding"), SAMPLINGS)
    def test_warp(self, size, dtype, interpolation, padding):
        moving = drawn(2, 2, *MOVING, dtype=dtype)
        options = (interpolation, padding)
        assert_as_reference(
            lambda m, u: ops.warp(m, u, *options),
            lambda m, u: ops.warp_reference(m, u, *options),
            *(moving, field(size, dtype, 6.0)),
        )

    @pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
    def test_nearest(self, size, dtype, padding):
        labels = (100 * drawn(2, 1, *MOVING)).to(torch.int16)
        u = field(size, dtype, 6.0)
        expected = ops.warp_reference(labels, u, "nearest", padding)
        assert torch.equal(ops.warp(labels, u, "nearest", padding), expected)

    @pytest.mark.parametrize("penalty", ["hyperelastic", "log2", "hinge", "relu"])
    def test_energies(self, size, dtype, penalty):
        options = ([1.0, 0.7, 2.0], penalty)
        assert_as_reference(
            lambda u: tuple(ops.deformation_energy(u, *options)),
            lambda u: tuple(ops.deformation_energy_reference(u, *options)),
            field(size, dtype, 0.5),
        )

    @pytest.mark.parametrize("reduce", [None, "min", "mean", "bound"])
    def test_determinants(self, size, dtype, reduce):
        u = field(size, dtype, 0.6)
        if reduce and max(size) == 1:
            with pytest.raises(ValueError, match="needs a cell, there is none"):
                ops.jacobian_determinant(u, reduce)
        elif reduce == "bound":
            own, other = (
                ops.jacobian_determinant(u, reduce),
                ops.jacobian_determinant_reference(u, reduce),
            )
            torch.testing.assert_close(own, other)
        else:
            assert_as_reference(
                lambda u: ops.jacobian_determinant(u, reduce),
                lambda u: ops.jacobian_determinant_reference(u, reduce),
                u,
            )

    @pytest.mark.parametrize("masked", [False, True])
    def test_similarities(self, size, dtype, masked):
        pair = drawn(2, 2, *size, dtype=dtype), drawn(2, 2, *size, dtype=dtype, seed=3)
        mask = mask_of(size, dtype) if masked else None
        if np.prod(size) > 1:
            assert_as_reference(
                lambda w, r: ops.correlation(w, r, mask),
                lambda w, r: ops.correlation_reference(w, r, mask),
                *pair,
            )
        for bins in (5, 32):
            assert_as_reference(
                lambda w, r, b=bins: ops.mutual_information(w, r, b, mask),
                lambda w, r, b=bins: ops.mutual_information_reference(w, r, b, mask),
                *pair,
            )
        for window in (3, 5, 9):
            assert_as_reference(
                lambda w, r, n=window: ops.local_correlation(w, r, n, mask),
                lambda w, r, n=window: ops.local_correlation_reference(w, r, n, mask),
                *pair,
            )
        for variant in ("pls", "smooth", "ngf"):
            options = (0.1, 0.2, variant, mask)
            assert_as_reference(
                lambda w, r, o=options: ops.parallel_level_sets(w, r, *o),
                lambda w, r, o=options: ops.parallel_level_sets_reference(w, r, *o),
                *pair,
            )
        assert_as_reference(
            lambda i: ops.gradient_scale(i, 1.7, mask),
            lambda i: ops.gradient_scale_reference(i, 1.7, mask),
            pair[0],
        )

    @pytest.mark.parametrize("similarity", ["ssd", "pls", {"ncc": 1.0, "lncc": 0.2, "ngf": 0.3}])
    def test_objective(self, size, dtype, similarity):
        if np.prod(size) == 1 and similarity != "ssd":
            pytest.skip("one voxel has no contrast")
        moving, fixed = drawn(2, 2, *MOVING, dtype=dtype), drawn(2, 2, *size, dtype=dtype, seed=3)
        options = {"eps_moving": 0.1, "eps_fixed": 0.2, "mask": mask_of(size, dtype) + 0.5}
        u = field(size, dtype, 0.5)

        def terms(function):
            return lambda u: tuple(function(moving, fixed, u, similarity, **options)[:5])

        reference = terms(ops.registration_objective_reference)
        assert_as_reference(terms(ops.registration_objective), reference, u)
        found, gradient = ops.registration_objective_value_and_gradient(
            *(moving, fixed, u, similarity), **options
        )
        leaf = u.clone().requires_grad_()
        total = reference(leaf)[0]
        loose = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
        torch.testing.assert_close(found.total, total.detach(), **loose)
        torch.testing.assert_close(gradient, torch.autograd.grad(total.sum(), leaf)[0], **loose)


def test_the_objective_has_the_gradient_of_its_parts_to_the_bit():
    """One driver composes the operators: what it returns is what autograd makes of them."""
    size = (6, 9, 20)
    moving, fixed = (drawn(1, 1, *size, dtype=torch.float32, seed=k) for k in (0, 3))
    u = field(size, torch.float32, 0.5, samples=1)
    weights = (60.0, 1.0, 30.0, 3.0)
    leaf = u.clone().requires_grad_()
    energies = ops.deformation_energy(leaf)
    (of_energies,) = torch.autograd.grad(
        sum(w * e for w, e in zip(weights[1:], energies, strict=True)), leaf
    )
    warped = ops.warp(moving, u).requires_grad_()
    (to_warped,) = torch.autograd.grad(weights[0] * ops.correlation(warped, fixed), warped)
    _, of_warp = torch.ops.diffreg.warp_backward(
        to_warped, moving, u, "linear", "border", False, True
    )
    _, gradient = ops.registration_objective_value_and_gradient(moving, fixed, u, "ncc", weights)
    assert torch.equal(gradient, of_energies + of_warp)


# peers


def normalised(u, moving_size):
    """grid_sample's grid, x first, for a displacement in voxels."""
    axes = [torch.arange(n, dtype=u.dtype) for n in u.shape[2:]]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")) + u
    parts = [2 * points[:, k] / (n - 1) - 1 for k, n in enumerate(moving_size)]
    return torch.stack(parts[::-1], -1)


@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize(("ours", "theirs"), [("linear", "bilinear"), ("nearest", "nearest")])
def test_grid_sample(ours, theirs, padding):
    moving, u = drawn(2, 2, *MOVING), field((3, 5, 6), scale=8.0)
    grid = normalised(u, MOVING)
    expected = F.grid_sample(moving, grid, theirs, padding, align_corners=True)
    torch.testing.assert_close(ops.warp(moving, u, ours, padding), expected)


@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
def test_bicubic_grid_sample(padding):
    """In 2-D the cubic kernel is torch's, with both gradients."""
    values, gradients = [], []
    for own in (True, False):
        moving = drawn(2, 2, 6, 7).requires_grad_()
        u = (8 * drawn(2, 2, 5, 6, seed=1) - 4).requires_grad_()
        if own:
            warped = ops.warp(moving, u, "cubic", padding)
        else:
            grid = normalised(u, (6, 7))
            warped = F.grid_sample(moving, grid, "bicubic", padding, align_corners=True)
        values.append(warped)
        gradients.append(torch.autograd.grad((warped * drawn(2, 2, 5, 6)).sum(), (moving, u)))
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_scipy():
    moving, u = drawn(1, 1, *MOVING), field((3, 5, 6), scale=3.0, samples=1)
    points = np.stack(np.meshgrid(*map(np.arange, (3, 5, 6)), indexing="ij")) + u[0].numpy()
    expected = ndimage.map_coordinates(moving[0, 0].numpy(), points, order=1, mode="nearest")
    np.testing.assert_allclose(ops.warp(moving, u)[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("size", [(5, 6, 7), (1, 4, 1), (5, 6)])
def test_no_displacement_gives_the_image_to_the_bit(interpolation, padding, size):
    image = drawn(1, 1, *size, dtype=torch.float32)
    still = torch.zeros(1, len(size), *size)
    assert torch.equal(ops.warp(image, still, interpolation, padding), image)


def test_reflection_by_hand():
    row = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
    u = torch.tensor([[0.0] * 4, [-1.0, 3.0, 2.5, 5.0]]).reshape(1, 2, 1, 4)  # to -1, 4, 4.5, 8
    assert ops.warp(row, u, padding="reflection").flatten().tolist() == [1, 2, 1.5, 2]


def test_a_displacement_that_is_not_finite_is_nan_and_nothing_else():
    u = field((3, 4, 5), scale=0.4)
    u[0, 1, 1, 2, 3] = torch.inf
    for interpolation, padding in SAMPLINGS:
        warped = ops.warp(drawn(2, 1, *MOVING), u, interpolation, padding)
        assert warped.isnan().nonzero().tolist() == [[0, 0, 1, 2, 3]]


# an axis of one voxel, bounds, errors


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_plane_is_an_image(axis):
    flat, spacing = 2 * drawn(2, 2, 6, 7) - 1, [0.7, 2.0]
    others = [k for k in range(3) if k != axis]
    u = (5 * drawn(2, 3, 6, 7)).unsqueeze(2 + axis)  # what moves across the plane does not matter
    u[:, others] = flat.unsqueeze(2 + axis)
    lengths = [9.0, 9.0, 9.0]
    for k, length in zip(others, spacing, strict=True):
        lengths[k] = length
    for own, other in zip(
        ops.deformation_energy(u, lengths), ops.deformation_energy(flat, spacing), strict=True
    ):
        assert torch.equal(own, other)
    for reduce in (None, "min", "bound"):
        cells = ops.jacobian_determinant(u, reduce)
        expected = ops.jacobian_determinant(flat, reduce)
        assert torch.equal(cells.squeeze(axis + (1 if reduce else 2)), expected)
    pair = drawn(2, 1, 6, 7), drawn(2, 1, 6, 7, seed=4)
    volumes = [image.unsqueeze(2 + axis) for image in pair]
    torch.testing.assert_close(
        ops.parallel_level_sets(*volumes), ops.parallel_level_sets(*pair), rtol=1e-12, atol=0
    )
    _, gradient = ops.registration_objective_value_and_gradient(*volumes, 0.1 * u, "ncc")
    _, expected = ops.registration_objective_value_and_gradient(*pair, 0.1 * flat, "ncc")
    torch.testing.assert_close(gradient[:, others].squeeze(2 + axis), expected)


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (1, 1, 7), (1, 7, 1), (7, 1, 1)], ids=str)
def test_a_grid_of_one_row_is_a_line(size):
    """By hand: 1 + du along it, and nothing of what moves across."""
    axis = size.index(7)
    u = 5 * drawn(2, len(size), *size)
    u[:, axis] = (drawn(2, 7, seed=3) - 0.5).reshape(2, *size)
    u.requires_grad_()
    along = u[:, axis].reshape(2, 7)
    stretch = 1 + along.diff()
    spacing = [9.0] * len(size)
    spacing[axis] = 2.0
    energies = ops.deformation_energy(u, spacing)
    expected = (
        along.diff().square().mean(1),
        (along.diff(n=2) / 2).square().mean(1),
        ((stretch - 1) ** 2 / stretch).square().mean(1),
    )
    assert stretch.min() > 0.2
    for own, other in zip(energies, expected, strict=True):
        torch.testing.assert_close(own, other)
        gradients = [torch.autograd.grad(v.sum(), u, retain_graph=True)[0] for v in (own, other)]
        torch.testing.assert_close(*gradients)
    cells = tuple(6 if n == 7 else 1 for n in size)
    corners = ops.jacobian_determinant(u)
    assert corners.shape == (2, 2, *cells)
    torch.testing.assert_close(corners.reshape(2, 2, 6), stretch[:, None].expand(-1, 2, -1))
    least = ops.jacobian_determinant(u, "min")
    assert least.shape == (2, *cells)
    torch.testing.assert_close(least.reshape(2, 6), stretch)


def test_the_bound_holds_inside_every_cell_and_sees_folds_that_corners_miss():
    u = field((17, 17, 17), scale=0.45, samples=1)
    edges = _edges(u)
    corners = ops.jacobian_determinant(u)[0].flatten(1).min(0).values
    bound = ops.jacobian_determinant(u, "bound")[0].flatten()
    smallest = torch.full_like(bound, torch.inf)
    for s, t, w in itertools.product(torch.linspace(0, 1, 7).tolist(), repeat=3):
        at = []
        for axis, (a, b) in enumerate(((t, w), (s, w), (s, t))):
            blend = {
                (i, j): (a if i else 1 - a) * (b if j else 1 - b) for i in (0, 1) for j in (0, 1)
            }
            at.append(sum(weight * edges[axis][end] for end, weight in blend.items()))
        inside = (at[0] * torch.linalg.cross(at[1], at[2], dim=1)).sum(1).flatten()
        smallest = torch.minimum(smallest, inside)
    assert bool((bound <= smallest + 1e-12).all())
    missed = (corners > 0) & (smallest < 0)
    assert missed.any() and bool((bound[missed] < 0).all())
    assert _bernstein(edges).shape[1] == 27
    with pytest.raises(ValueError, match='reduce="bound" has no gradient'):
        ops.jacobian_determinant(u.requires_grad_(), "bound")


def test_shapes_are_refused_in_words():
    volume, u = drawn(1, 1, 4, 5, 6), field((4, 5, 6), samples=1)
    with pytest.raises(
        ValueError, match=r"\(N, 2, H, W\) or \(N, 3, D, H, W\), got \[1, 2, 4, 5, 6\]"
    ):
        ops.deformation_energy(u[:, :2])
    with pytest.raises(ValueError, match="displacement must have as many axes as moving"):
        ops.warp(volume[:, :, 0], u)
    with pytest.raises(ValueError, match="padding must be one of 'border', 'zeros'"):
        ops.registration_objective(volume, volume, u, padding="reflection")


# gradients and threads


@pytest.mark.parametrize(("interpolation", "padding"), SAMPLINGS)
def test_gradcheck_of_warp(interpolation, padding):
    moving = drawn(1, 1, 3, 4, 3).requires_grad_()
    u = (field((2, 3, 2), scale=2.0, samples=1) + 0.013).requires_grad_()
    function = lambda m, u: ops.warp(m, u, interpolation, padding)  # noqa: E731
    assert torch.autograd.gradcheck(function, (moving, u))
    assert torch.autograd.gradgradcheck(function, (moving, u))


def test_gradcheck_of_the_others():
    u = field((3, 3, 4), scale=0.7, samples=1).requires_grad_()
    pair = [drawn(1, 1, 3, 3, 4, seed=k).requires_grad_() for k in (0, 5)]
    corners = ops.jacobian_determinant(u)
    assert (corners < 0.2).any() and (corners > 0.2).any()  # on both sides of the threshold
    for function, inputs in (
        (lambda u: tuple(ops.deformation_energy(u)), [u]),
        (ops.jacobian_determinant, [u]),
        (lambda w, r: ops.correlation(w, r), pair),
        (lambda w, r: ops.local_correlation(w, r, 3), pair),
        (lambda w, r: ops.parallel_level_sets(w, r, 0.1, 0.2), pair),
        (lambda i: ops.gradient_scale(i), pair[:1]),
        (lambda u: ops.registration_objective(*(p.detach() for p in pair), 0.3 * u).total, [u]),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.alone
def test_threads_give_the_same_bits():
    """Slabs of planes: 40 planes are five of them."""
    size = (40, 30, 33)
    moving, fixed = (drawn(1, 1, *size, dtype=torch.float32, seed=k) for k in (0, 3))
    u = field(size, torch.float32, 0.5, samples=1)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [tensor.clone().requires_grad_() for tensor in (moving, fixed, u)]
        warped = ops.warp(leaves[0], leaves[2])
        parts = [
            *ops.deformation_energy(leaves[2]),
            ops.correlation(warped, leaves[1]),
            ops.local_correlation(warped, leaves[1]),
            ops.mutual_information(warped, leaves[1], moving=leaves[0]),
            ops.parallel_level_sets(warped, leaves[1]),
            ops.jacobian_determinant(leaves[2]).square().mean()[None],
        ]
        gradients = torch.autograd.grad(sum(part.sum() for part in parts), leaves)
        results.append([*parts, *gradients])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
