"""The operators on volumes: goldens, references, peers, gradients in every branch."""

import itertools

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from diffreg import ops
from diffreg.ops.deformation_energy import THRESHOLDS
from diffreg.ops.gradient_scale import image_gradient_reference
from diffreg.ops.jacobian_determinant import _bernstein, _edges
from diffreg.ops.local_correlation import GUARD, _box_mean

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


PADDINGS = pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])


@PADDINGS
def test_grid_sample(padding):
    """Values and both gradients."""
    moving, u, upstream = drawn(2, 2, *MOVING), field((3, 5, 6), scale=8.0), drawn(2, 2, 3, 5, 6)

    def theirs(moving, u):
        grid = normalised(u, MOVING)
        return F.grid_sample(moving, grid, "bilinear", padding, align_corners=True)

    results = []
    for function in (lambda m, u: ops.warp(m, u, "linear", padding), theirs):
        leaves = [tensor.clone().requires_grad_() for tensor in (moving, u)]
        warped = function(*leaves)
        results.append([warped, *torch.autograd.grad((warped * upstream).sum(), leaves)])
    torch.testing.assert_close(*results)


@PADDINGS
def test_nearest_grid_sample(padding):
    moving, u = drawn(2, 2, *MOVING), field((3, 5, 6), scale=8.0)
    grid = normalised(u, MOVING)
    expected = F.grid_sample(moving, grid, "nearest", padding, align_corners=True)
    assert torch.equal(ops.warp(moving, u, "nearest", padding), expected)


@PADDINGS
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


@pytest.mark.parametrize(
    ("padding", "mode"),
    [("border", "nearest"), ("zeros", "grid-constant"), ("reflection", "mirror")],
)
def test_scipy(padding, mode):
    moving, u = drawn(1, 1, *MOVING), field((3, 5, 6), scale=6.0, samples=1)
    points = np.stack(np.meshgrid(*map(np.arange, (3, 5, 6)), indexing="ij")) + u[0].numpy()
    expected = ndimage.map_coordinates(moving[0, 0].numpy(), points, order=1, mode=mode)
    found = ops.warp(moving, u, padding=padding)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of its own imports, and that it uses grid_sample
@PADDINGS
def test_monai(padding):
    blocks = pytest.importorskip("monai.networks.blocks", reason="MONAI is not installed")
    moving, u = (tensor.float() for tensor in (drawn(2, 1, *MOVING), field(MOVING, scale=3.0)))
    warp = blocks.Warp(mode="bilinear", padding_mode=padding)
    torch.testing.assert_close(ops.warp(moving, u, padding=padding), warp(moving, u))


def sitk_displacement(sitk, u):
    """Of one sample (1, 3, *S): its vectors are (x, y, z)."""
    return sitk.GetImageFromArray(u[0].flip(0).movedim(0, -1).numpy().copy(), isVector=True)


def test_simpleitk_warps_alike_inside_the_moving_image():
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    moving, u = drawn(1, 1, *MOVING), field(MOVING, scale=3.0, samples=1)
    image = sitk.GetImageFromArray(moving[0, 0].numpy())
    transform = sitk.DisplacementFieldTransform(sitk_displacement(sitk, u))
    outside = -1.0
    found = sitk.Resample(image, image, transform, sitk.sitkLinear, outside)
    expected = torch.from_numpy(sitk.GetArrayFromImage(found))
    # To half a voxel beyond the outermost centres it repeats the border; beyond them it fills.
    inside = expected != outside
    assert 0.2 < inside.double().mean() < 0.9
    torch.testing.assert_close(ops.warp(moving, u)[0, 0][inside], expected[inside])


def test_simpleitk_s_determinants_of_an_affine_field():
    """Its central differences are exact there, but for the border, where it has none."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    matrix = drawn(3, 3, seed=7) - 0.5
    points = torch.meshgrid(*(torch.arange(n).double() for n in (5, 6, 7)), indexing="ij")
    u = torch.einsum("dk,kzyx->dzyx", matrix, torch.stack(points))[None]
    found = sitk.DisplacementFieldJacobianDeterminant(sitk_displacement(sitk, u))
    expected = torch.from_numpy(sitk.GetArrayFromImage(found))[1:-1, 1:-1, 1:-1].double()
    own = ops.jacobian_determinant(u, "mean")[0, 1:, 1:, 1:]
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(1, 5), (4, 1, 5), (1, 1, 5), (1, 1, 1)], ids=str)
def test_the_objective_of_a_grid_of_one_plane_or_row(size, dtype):
    """Fused, as any other: its reference, float32 of half types, and without autograd."""
    images = [drawn(2, 1, *size, dtype=dtype, seed=k) for k in (0, 3)]
    u = (0.6 * drawn(2, len(size), *size, seed=1) - 0.3).to(dtype)
    options = {"similarity": "ncc", "weights": (2, 1, 3, 0.5), "padding": "reflection"}
    exact = [tensor.double() for tensor in (*images, u)]
    exact[2].requires_grad_()
    expected = ops.registration_objective_reference(*exact, **options)
    (slope,) = torch.autograd.grad(expected.total.sum(), exact[2])
    close = {"rtol": 5e-3, "atol": 5e-3} if dtype == torch.float16 else {"rtol": 1e-4, "atol": 1e-5}

    leaf = u.clone().requires_grad_()
    terms = ops.registration_objective(*images, leaf, **options, return_warped=True)
    assert terms.warped.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(terms.total.sum(), leaf)
    with torch.inference_mode():
        plain, own = ops.registration_objective_value_and_gradient(*images, u, **options)
    for k in range(5):
        torch.testing.assert_close(terms[k].double(), expected[k], **close)
        torch.testing.assert_close(plain[k], terms[k].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), slope, **close)
    torch.testing.assert_close(own, gradient, **close)

    def of_one(moving, fixed, field):
        found = ops.registration_objective_value_and_gradient(moving, fixed, field, **options)
        return found[1]

    each = torch.func.vmap(of_one)(*(tensor.unsqueeze(1) for tensor in (*images, u)))
    torch.testing.assert_close(each.squeeze(1), own, **close)


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
    with pytest.raises(ValueError, match='reduce="bound" has no gradient'):
        torch.func.vmap(lambda x: ops.jacobian_determinant(x, "bound"))(u[None])


def test_shapes_are_refused_in_words():
    volume, u = drawn(1, 1, 4, 5, 6), field((4, 5, 6), samples=1)
    with pytest.raises(
        ValueError, match=r"\(N, 2, H, W\) or \(N, 3, Z, H, W\), got \[1, 2, 4, 5, 6\]"
    ):
        ops.deformation_energy(u[:, :2])
    with pytest.raises(ValueError, match="displacement must have as many axes as moving"):
        ops.warp(volume[:, :, 0], u)
    with pytest.raises(TypeError, match="use padding='border', 'zeros' or 'reflection'"):
        ops.warp(volume, u, padding_mode="reflection")
    with pytest.raises(TypeError, match="use interpolation='linear', 'nearest' or 'cubic'"):
        ops.warp(volume, u, mode="bicubic")
    for reduce in ("min", "mean", "bound"):
        with pytest.raises(ValueError, match="needs a cell, there is none in shape"):
            ops.jacobian_determinant(field((1, 1, 1)), reduce)
    with pytest.raises(ValueError, match="spacing must have 3 lengths, one an axis, got"):
        ops.deformation_energy(u, (1.0, 2.0))
    for spacing in ("abc", [[1.0, 1.0, 1.0]], object()):
        with pytest.raises(ValueError, match="spacing must be 3 lengths or one, got"):
            ops.deformation_energy(u, spacing)
    for one in (np.float32(2), torch.tensor(2.0)):
        assert ops.deformation_energy(u, one) == ops.deformation_energy(u, 2.0)
    with pytest.raises(ValueError, match=r"mask must be \(N, 1, \*S\) = \[1, 1, 4, 5, 6\], got"):
        ops.correlation(volume, volume, volume[:, :, :2])
    with pytest.raises(ValueError, match=r"displacement must be .* on the grid of fixed"):
        ops.registration_objective(volume, volume, u[:, :, 1:])
    with pytest.raises(ValueError, match="padding must be one of 'border', 'zeros', 'reflection'"):
        ops.registration_objective(volume, volume, u, padding="wrap")


# gradients: every branch is asked for by name, and was taken


def check_gradients(function, *inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def all_taken(**branches):
    """Each branch is a mask of where it is taken; none is left out."""
    counts = {name: int(torch.as_tensor(where).sum()) for name, where in branches.items()}
    assert all(counts.values()), counts


@pytest.mark.slow
@pytest.mark.parametrize(("interpolation", "padding"), SAMPLINGS)
def test_gradients_of_warp(interpolation, padding):
    """Points below, inside and above every axis; by reflection, beyond its first image too."""
    size, moving = (2, 3, 3), drawn(1, 1, 3, 4, 3)
    u = field(size, scale=5.0, samples=1) + 0.013
    axes = torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij")
    for k, (axis, n) in enumerate(zip(axes, moving.shape[2:], strict=True)):
        point = axis + u[0, k]
        periods = (point / (n - 1)).floor()  # 0 inside
        all_taken(
            below=periods == -1,
            inside=periods == 0,
            above=periods == 1,
            beyond=(periods < -1) | (periods > 1),
        )
        apart = (point - point.round()).abs().min()
        assert apart > 1e-4  # from the kinks, which finite differences must not cross
    check_gradients(lambda m, u: ops.warp(m, u, interpolation, padding), moving, u)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["hyperelastic", "log2", "hinge", "relu"])
def test_gradients_of_the_energies(penalty):
    u = field((3, 3, 4), scale=0.7, samples=1)
    threshold = THRESHOLDS[penalty]
    corners = ops.jacobian_determinant(u)
    all_taken(above=corners > threshold, below=corners < threshold, folded=corners < 0)
    spacing = (1.0, 0.7, 2.0)
    check_gradients(lambda u: tuple(ops.deformation_energy(u, spacing, penalty)), u)


@pytest.mark.parametrize("reduce", [None, "min", "mean"])
def test_gradients_of_the_determinants(reduce):
    u = field((3, 3, 4), scale=0.7, samples=1)
    smallest = ops.jacobian_determinant(u).flatten(2).min(1).indices
    assert len(smallest.unique()) > 3  # whose gradient "min" passes on
    check_gradients(lambda u: ops.jacobian_determinant(u, reduce), u)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", ["pls", "smooth", "ngf"])
def test_gradients_of_the_level_sets(variant, masked):
    pair = [drawn(1, 2, 3, 3, 4, seed=k) for k in (0, 5)]
    g, h = (torch.stack(image_gradient_reference(image)) for image in pair)
    inner = (g * h).sum(0)
    mask = mask_of((3, 3, 4), torch.float64)[:1] if masked else None
    all_taken(parallel=inner > 0, opposed=inner < 0, **weights_of(mask))
    check_gradients(lambda w, r: ops.parallel_level_sets(w, r, 0.1, 0.2, variant, mask), *pair)


def weights_of(mask):
    return {} if mask is None else {"hidden": mask == 0, "half": mask == 0.5, "whole": mask == 1}


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_correlations(masked):
    """Windows on both sides of the variances' guard; a whole image with contrast, and without."""
    size = (3, 3, 8)
    w, r = (drawn(2, 1, *size, seed=k) for k in (0, 5))
    faint = torch.ones(size).double()
    faint[..., :5] = 1e-3
    mask = mask_of(size, torch.float64) if masked else None
    of_w, of_r = w * faint, r * faint.roll(2, -1)
    for image in (of_w, of_r):
        mean = _box_mean(image, 3)
        guarded = _box_mean(image**2, 3) - mean**2 < GUARD
        all_taken(guarded=guarded, varied=~guarded, **weights_of(mask))
    check_gradients(lambda w, r: ops.local_correlation(w, r, 3, mask), of_w, of_r)
    check_gradients(lambda w, r: ops.correlation(w, r, mask), w, r)
    constant = torch.full_like(w, 0.3).requires_grad_()
    value = ops.correlation(constant, r, mask)
    assert (value == 1).all() and not torch.autograd.grad(value.sum(), constant)[0].any()


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_edge_scale(masked):
    """Of an image with edges; of one without, which has the floor for a scale."""
    size = (3, 3, 4)
    image = torch.cat([drawn(1, 2, *size), torch.full((1, 2, *size), 0.7).double()])
    mask = mask_of(size, torch.float64) if masked else None
    scale = ops.gradient_scale(image, 1.7, mask)
    all_taken(measured=scale > 1e-3, floor=scale < 1e-6, **weights_of(mask))
    check_gradients(lambda i: ops.gradient_scale(i, 1.7, mask), image)


MEASURES = ["ssd", "ncc", "lncc", "pls", "smooth_pls", "ngf"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("similarity", "padding"), [*((measure, "border") for measure in MEASURES), ("ssd", "zeros")]
)
def test_gradients_of_the_objective(similarity, padding):
    size = (3, 3, 4)
    moving, fixed = drawn(1, 1, 4, 3, 4), drawn(1, 1, *size, seed=3)
    u = field(size, scale=0.7, samples=1)
    mask = mask_of(size, torch.float64)[:1]
    corners = ops.jacobian_determinant(u)
    all_taken(above=corners > 0.2, below=corners < 0.2, **weights_of(mask))
    options = {"eps_moving": 0.1, "eps_fixed": 0.2, "mask": mask, "padding": padding}
    check_gradients(
        lambda u: tuple(ops.registration_objective(moving, fixed, u, similarity, **options)[:5]), u
    )
