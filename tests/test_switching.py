"""Every row of docs/switching.md: theirs against ours, in value and gradients.

A test is named in the last column of its row, and every percentage in that row is measured here, of
images; what a row says beside them is tested of images and of volumes.
"""

import functools
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from diffreg.fields import compose, identity_grid, integrate, resize
from diffreg.losses import LNCC, MI, SSD, Dice
from diffreg.ops import (
    affine_warp,
    correlation,
    deformation_energy,
    jacobian_determinant,
    local_correlation,
    mutual_information,
    warp,
)

PAGE = Path(__file__).parents[1] / "docs" / "switching.md"
IMAGE, VOLUME = (64, 48), (20, 18, 16)
BOTH = pytest.mark.parametrize("size", [IMAGE, VOLUME], ids=["images", "volumes"])

ROWS = {}
for line in PAGE.read_text().splitlines():
    if match := re.fullmatch(r"\|(.*)\| `(test_\w+)` \|", line):
        ROWS[match[2]] = match[1]


# Theirs, of their own library and of torch: not what is tested here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence"),
]


def imported(name):
    """The other library's module, without the warnings of its import; or the test is skipped."""
    library = name.split(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"this row needs it: pip install {library}")


@pytest.fixture(scope="module")
def monai():
    blocks = imported("monai.networks.blocks")
    return SimpleNamespace(
        Warp=blocks.Warp,
        DVF2DDF=blocks.DVF2DDF,
        AffineTransform=imported("monai.networks.layers").AffineTransform,
        losses=imported("monai.losses"),
        MetaTensor=imported("monai.data").MetaTensor,
    )


@pytest.fixture(scope="module")
def voxelmorph():
    return imported("voxelmorph")


@pytest.fixture(scope="module")
def neurite():
    return imported("neurite.nn.modules")


# A smooth pair: waves of 12 to 20 voxels, displaced by up to 3 voxels over 60.


def indices(size=IMAGE):
    return identity_grid(size, dtype=torch.float64)[0]


def waves(size, phase):
    """Two samples (2, 1, *S)."""
    i, j, *k = indices(size)
    inward = 0.3 * k[0] if k else 0
    first = 0.5 + 0.3 * torch.sin(0.35 * i + 0.2 * j + inward + phase)
    first = first + (0.15 * torch.cos(0.5 * j) if phase == 0 else 0.1 * torch.cos(0.45 * i))
    return torch.stack([first, first.flip(0)])[:, None]


def moving(size=IMAGE):
    return waves(size, 0)


def fixed(size=IMAGE):
    return waves(size, 0.7)


def displacement(size=IMAGE):
    i, j, *k = indices(size)
    inward = 0.07 * k[0] if k else 0
    parts = [
        3 * torch.sin(0.1 * i + 0.04 * j + inward),
        2.5 * torch.cos(0.05 * i - 0.12 * j + inward),
        *[2 * torch.sin(0.06 * j - 0.11 * inwards) for inwards in k],
    ]
    first = torch.stack(parts)
    return torch.stack([first, -0.5 * first])


def differences(theirs, ours, *inputs, margin=0):
    """|theirs - ours| / |ours| of the value and of each gradient, `margin` voxels inside."""
    sides = []
    for function in (theirs, ours):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        value = function(*leaves).squeeze()
        upstream = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        gradients = torch.autograd.grad((value * upstream).sum(), leaves)
        inner = (..., *(slice(margin, n - margin) for n in IMAGE)) if margin else ...
        sides.append([value.detach(), *(gradient[inner] for gradient in gradients)])
    return [((a - b).norm() / b.norm()).item() for a, b in zip(*sides, strict=True)]


def same(theirs, ours, *inputs):
    """Nothing but rounding in double precision between them."""
    return max(differences(theirs, ours, *inputs)) < 1e-12


def says(test, size, *shares):
    """The row of the test gives these shares, where they are of images, as its percentages."""
    if size != IMAGE:
        return
    measured = [f"{100 * share:.2g}" for share in shares]
    assert re.findall(r"([\d.]+) %", ROWS[test]) == measured


def test_every_row_has_its_test_and_every_test_its_row():
    own = {name for name in globals() if name.startswith("test_")}
    assert set(ROWS) == own - {"test_every_row_has_its_test_and_every_test_its_row"}
    rows = [line for line in PAGE.read_text().splitlines() if line.count("|") == 5]
    rows = [row for row in rows if not row.startswith(("| theirs", "|---"))]
    assert len(rows) == len(ROWS)


# Warping


@BOTH
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_monai_warp(monai, padding, size):
    theirs = monai.Warp("bilinear", padding)
    assert same(theirs, lambda x, u: warp(x, u, padding=padding), moving(size), displacement(size))


@BOTH
def test_monai_warp_nearest(monai, size):
    labels, u = (5 * moving(size)).long(), displacement(size) + 0.01  # no point half way
    theirs = monai.Warp("nearest", "border")
    ours = warp(labels, u, interpolation="nearest")
    assert torch.equal(theirs(labels.double(), u).long(), ours)
    row = torch.arange(4.0).reshape(1, 1, *[1] * (len(size) - 1), 4)
    half = torch.zeros(1, len(size), *row.shape[2:])
    half[:, -1] = 0.5
    assert warp(row, half, interpolation="nearest").flatten().tolist() == [1, 2, 3, 3]


@BOTH
def test_monai_meta_tensor(monai, size):
    image = monai.MetaTensor(moving(size), meta={"patient": "first"}).requires_grad_()
    warped = warp(image, displacement(size))
    assert warped.meta["patient"] == "first"
    correlation(warped, monai.MetaTensor(fixed(size))).sum().backward()
    assert image.grad.abs().sum() > 0


@BOTH
def test_voxelmorph_spatial_transformer(voxelmorph, size):
    theirs = voxelmorph.nn.modules.SpatialTransformer()
    ours = functools.partial(warp, padding="zeros")
    assert same(theirs, ours, moving(size), displacement(size))


def sampled(size, theirs_options, ours_options):
    """Whether grid_sample and warp agree, voxel centres of the corners at -1 and 1 or beside."""
    sizes = torch.tensor(size, dtype=torch.float64)
    beside = 0 if theirs_options["align_corners"] else 1

    def ours(x, grid):
        points = ((grid.flip(-1) + 1) * (sizes - 1 + beside) - beside) / 2
        return warp(x, points.movedim(-1, 1) - indices(size), **ours_options)

    points = (indices(size) + displacement(size)).movedim(1, -1)
    grid = ((2 * points + beside) / (sizes - 1 + beside) - 1).flip(-1)
    return same(lambda x, at: F.grid_sample(x, at, **theirs_options), ours, moving(size), grid)


@BOTH
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_grid_sample(padding, size):
    options = {"padding_mode": padding, "align_corners": True}
    assert sampled(size, options, {"padding": padding})


@BOTH
def test_grid_sample_reflection(size):
    options = {"padding_mode": "reflection", "align_corners": True}
    assert sampled(size, options, {"padding": "reflection"})


@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
def test_grid_sample_bicubic(padding):
    options = {"mode": "bicubic", "padding_mode": padding, "align_corners": True}
    assert sampled(IMAGE, options, {"interpolation": "cubic", "padding": padding})
    volume, grid = moving(VOLUME), torch.zeros(2, *VOLUME, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="bicubic"):
        F.grid_sample(volume, grid, **options)
    zero = torch.zeros_like(displacement(VOLUME))
    assert torch.equal(warp(volume, zero, "cubic", padding), volume)


@BOTH
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
def test_grid_sample_with_corners_not_aligned(padding, size):
    options = {"padding_mode": padding, "align_corners": False}
    assert sampled(size, options, {"padding": padding}) == (padding != "reflection")


def maps(axes):
    """Two affine maps (2, D, D + 1), of which each entry counts."""
    generator = torch.Generator().manual_seed(axes)
    noise = torch.randn(2, axes, axes + 1, generator=generator, dtype=torch.float64)
    return torch.eye(axes, axes + 1, dtype=torch.float64) + 0.1 * noise


def about(centre, linear, shift):
    """(N, D, D + 1), p -> centre[0] + linear (p - centre[1]) + shift."""
    shift = shift + centre[0] - linear @ centre[1]
    return torch.cat([linear, shift[..., None]], -1)


@BOTH
@pytest.mark.parametrize("aligned", [False, True])
def test_affine_grid(aligned, size):
    onto, axes = tuple(n - 3 for n in size), len(size)
    sizes = [torch.tensor(shape, dtype=torch.float64) for shape in (size, onto)]
    centres = [(n - 1) / 2 for n in sizes]
    h = centres if aligned else [n / 2 for n in sizes]

    def theirs(x, theta):
        grid = F.affine_grid(theta, (2, 1, *onto), align_corners=aligned)
        return F.grid_sample(x, grid, align_corners=aligned)

    def ours(x, theta):
        linear, shift = theta[..., :axes].flip(1, 2), theta[..., axes].flip(1)
        m = about(centres, h[0][:, None] * linear / h[1], h[0] * shift)
        return affine_warp(x, m, size=onto, padding="zeros")

    assert same(theirs, ours, moving(size), maps(axes))


@BOTH
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("aligned", [False, True])
def test_monai_affine_transform(monai, aligned, padding, size):
    onto = tuple(n + 3 for n in size)
    theirs = monai.AffineTransform(onto, padding_mode=padding, align_corners=aligned)
    ours = functools.partial(affine_warp, size=onto, padding=padding)
    assert same(theirs, ours, moving(size), maps(len(size)))


@BOTH
def test_voxelmorph_affine(voxelmorph, size):
    axes = len(size)
    centre = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    last = torch.eye(axes + 1, dtype=torch.float64)[-1:].expand(2, 1, axes + 1)

    def ours(x, matrix):
        inverse = torch.linalg.inv(matrix)[:, :axes]
        m = about([centre, centre], inverse[..., :axes], inverse[..., axes])
        return affine_warp(x, m, size=size, padding="zeros")

    theirs = functools.partial(voxelmorph.spatial_transform, non_spatial_dims=(0, 1))
    assert same(theirs, ours, moving(size), torch.cat([maps(axes), last], 1))


@BOTH
def test_voxelmorph_compose(voxelmorph, size):
    a, b = displacement(size), displacement(size).flip(2)

    def theirs(a, b):
        return voxelmorph.compose([a, b])

    assert same(theirs, lambda a, b: b + warp(a, b, padding="zeros"), a, b)
    inner = (..., *[slice(4, -4)] * len(size))
    torch.testing.assert_close(theirs(a, b)[inner], compose(a, b)[inner])


@BOTH
def test_identity(monai, size):
    """Rounding decides here, in single precision: the share is known to within its order."""
    image = moving(size).float()
    zero = torch.zeros(2, len(size), *size, requires_grad=True)
    gradients = []
    for function in (monai.Warp("bilinear", "border"), warp):
        warped = function(image, zero)
        gradients += torch.autograd.grad(warped.sum(), zero)
    assert torch.equal(warp(image, zero), image)
    left, right = gradients
    wrong = ((left - right).abs() > 1e-3 * right.abs().max()).double().mean()
    assert 0.05 < wrong < 0.5


@BOTH
def test_monai_integration(monai, size):
    velocity = 2 * displacement(size)
    theirs = monai.DVF2DDF(7, padding_mode="border")
    assert same(theirs, lambda v: integrate(v, 7), velocity)
    value, _ = differences(monai.DVF2DDF(7), lambda v: integrate(v, 7), velocity)
    says("test_monai_integration", size, value)


@BOTH
def test_voxelmorph_integration(voxelmorph, size):
    velocity = 2 * displacement(size)
    theirs = voxelmorph.nn.modules.IntegrateVelocityField(steps=7)
    value, _ = differences(theirs, lambda v: integrate(v, 7), velocity)
    says("test_voxelmorph_integration", size, value)

    def written_out(velocity):
        u = velocity / 2**7
        for _ in range(7):
            u = u + warp(u, u, padding="zeros")
        return u

    assert same(theirs, written_out, velocity)


@BOTH
def test_voxelmorph_resize(voxelmorph, size):
    theirs = voxelmorph.nn.modules.ResizeDisplacementField(2.0)
    shape = [2 * n for n in size]
    value, _ = differences(theirs, lambda u: resize(u, shape), displacement(size))
    says("test_voxelmorph_resize", size, value)
    constant = torch.ones_like(displacement(size))
    torch.testing.assert_close(theirs(constant), resize(constant, shape))


@BOTH
def test_voxelmorph_jacobian_determinant(voxelmorph, size):
    factors = torch.tensor([0.25, -0.5, 0.5][: len(size)]).reshape(-1, *[1] * len(size))
    stretch = indices(size) * factors
    theirs = voxelmorph.py.utils.jacobian_determinant(stretch.movedim(0, -1).numpy())
    ours = jacobian_determinant(stretch[None])
    expected = float((1 + factors).prod())
    assert theirs == pytest.approx(expected) and ours.numpy() == pytest.approx(expected)
    # Every second column displaced by 1.2: central differences see two equal neighbours.
    comb = torch.zeros(len(size), *size, dtype=torch.float64)
    comb[-1] = 0.6 * (-1) ** indices(size)[-1]
    inner = voxelmorph.py.utils.jacobian_determinant(comb.movedim(0, -1).numpy())[..., 1:-1]
    assert inner.min() == pytest.approx(1)
    folded = (jacobian_determinant(comb[None], reduce="min") <= 0).double().mean().item()
    assert folded > 0.5
    says("test_voxelmorph_jacobian_determinant", size, (inner <= 0).mean(), folded)


# Energies


@BOTH
def test_neurite_spatial_gradient(neurite, size):
    theirs = neurite.SpatialGradient("l2")

    def ours(u):
        return deformation_energy(u).diffusion.mean() / len(size) ** 2

    assert same(theirs, ours, displacement(size))


def checkerboard(size):
    field = torch.zeros(1, len(size), *size, dtype=torch.float64)
    field[:, 0] = (-1.0) ** indices(size).sum(0)
    return field


def affine(size):
    i, j, *k = indices(size)
    return torch.stack([0.2 * i - 0.1 * j, 0.3 * j, *[0.1 * i - 0.2 * inwards for inwards in k]])[
        None
    ]


def quadratic(size):
    i, j, *k = indices(size)
    parts = [0.02 * i * j, 0.01 * i**2 - 0.03 * j**2, *[0.01 * j * n + 0.02 * n**2 for n in k]]
    return torch.stack(parts)[None]


@BOTH
def test_monai_diffusion(monai, size):
    theirs = monai.losses.DiffusionLoss()

    def ours(u):
        return deformation_energy(u).diffusion.mean() / len(size)

    if size == IMAGE:
        _, inner = differences(theirs, ours, displacement(), margin=4)
        says("test_monai_diffusion", size, *differences(theirs, ours, displacement()), inner)
    assert theirs(checkerboard(size)) == 0
    assert ours(checkerboard(size)) == pytest.approx(4)
    torch.testing.assert_close(theirs(affine(size)), ours(affine(size)))


@BOTH
def test_monai_bending(monai, size):
    theirs = monai.losses.BendingEnergyLoss()

    def ours(u):
        return deformation_energy(u).bending.mean() / len(size)

    if size == IMAGE:
        _, inner = differences(theirs, ours, displacement(), margin=4)
        says("test_monai_bending", size, *differences(theirs, ours, displacement()), inner)
    assert theirs(checkerboard(size)) == pytest.approx(16)
    assert ours(checkerboard(size)) == pytest.approx(32 if size == IMAGE else 48)
    torch.testing.assert_close(theirs(quadratic(size)), ours(quadratic(size)))


@BOTH
def test_monai_normalize(monai, size):
    spacing, axes = [1 / n for n in size], len(size)
    u = quadratic(size)
    theirs = monai.losses.BendingEnergyLoss(normalize=True)(u)
    torch.testing.assert_close(theirs, deformation_energy(u, spacing).bending[0] / axes)
    u = affine(size)
    theirs = monai.losses.DiffusionLoss(normalize=True)(u)
    torch.testing.assert_close(theirs, deformation_energy(u, spacing).diffusion[0] / axes)


# Similarities


@BOTH
def test_mean_squared_error(neurite, size):
    assert same(torch.nn.MSELoss(), SSD(), moving(size), fixed(size))
    assert same(neurite.MSE(), SSD(), moving(size), fixed(size))


def inside(window, size):
    """1 where the whole window lies in the image."""
    half = window // 2
    mask = torch.zeros(2, 1, *size, dtype=torch.float64)
    mask[(..., *[slice(half, -half)] * len(size))] = 1
    return mask


@BOTH
def test_monai_local_correlation(monai, size):
    of_windows = functools.partial(
        monai.losses.LocalNormalizedCrossCorrelationLoss, len(size), kernel_size=9
    )
    theirs, raw, mask = of_windows(), of_windows(reduction="none"), inside(9, size)

    def theirs_inside(w, f):
        return 1 + (raw(w, f) * mask).sum() / mask.sum()

    pair = moving(size), fixed(size)
    assert same(theirs_inside, lambda w, f: LNCC(window=9)(w, f, mask), *pair)
    apart = differences(lambda w, f: 1 + theirs(w, f), LNCC(window=9), *pair)
    says("test_monai_local_correlation", size, *apart[:2])


@BOTH
def test_neurite_local_correlation(neurite, size):
    theirs, ours = neurite.NCC(window_size=9), LNCC(window=9)
    apart = differences(lambda w, f: 1 - theirs(w, f), ours, moving(size), fixed(size))
    says("test_neurite_local_correlation", size, *apart[:2])


@BOTH
def test_guard_of_a_flat_window(monai, size):
    # Noise of variance 1e-6, below our guard of 1e-5 and above theirs, 1e-5 / 81 or 1e-5 / 729.
    generator = torch.Generator().manual_seed(0)
    noise = 1e-3 * torch.randn(2, 1, *size, generator=generator, dtype=torch.float64)
    flat, mask = 0.5 + noise, inside(9, size)
    loss = monai.losses.LocalNormalizedCrossCorrelationLoss(len(size), 9, reduction="none")
    theirs = 1 + (loss(flat, flat) * mask).sum() / mask.sum()
    assert theirs == pytest.approx(0, abs=1e-9)
    assert LNCC(window=9)(flat, flat, mask) == pytest.approx(0.99, abs=5e-3)


@BOTH
def test_monai_mutual_information(monai, size):
    def apart(kernel):
        loss = monai.losses.GlobalMutualInformationLoss(kernel, num_bins=32)
        theirs, ours = loss(moving(size), fixed(size)), MI(bins=32)(moving(size), fixed(size))
        return abs((theirs - ours) / ours).item()

    shares = apart("b-spline"), apart("gaussian")
    assert max(shares) < 0.1
    says("test_monai_mutual_information", size, *shares)


def itk_metric(name, *settings, size):
    """What ITK's registration minimises, of the first sample and without a transform."""
    sitk = imported("SimpleITK")
    images = [sitk.GetImageFromArray(image(size)[0, 0].numpy()) for image in (fixed, moving)]
    method = sitk.ImageRegistrationMethod()
    getattr(method, f"SetMetricAs{name}")(*settings)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(sitk.TranslationTransform(len(size)))
    return pytest.approx(method.MetricEvaluate(*images), rel=1e-9)


@BOTH
def test_itk_mutual_information(size):
    for bins in (32, 50):
        ours = mutual_information(moving(size), fixed(size), bins=bins)[0].item()
        assert ours == itk_metric("MattesMutualInformation", bins, size=size)


@BOTH
def test_itk_local_correlation(size):
    ours = local_correlation(moving(size), fixed(size), window=9)[0].item() - 1
    assert ours == itk_metric("ANTSNeighborhoodCorrelation", 4, size=size)


@BOTH
def test_itk_correlation(size):
    ours = -((1 - correlation(moving(size), fixed(size))[0].item()) ** 2)
    assert ours == itk_metric("Correlation", size=size)


def labels(size):
    """Two labels as channels, hard and softened by a warp, (2, 2, *S) each."""
    disc = (moving(size) > 0.6).double()
    hard = torch.cat([disc, 1 - disc], 1)
    return hard, warp(hard, displacement(size))


@BOTH
def test_monai_dice(monai, size):
    hard, soft = labels(size)
    theirs = monai.losses.DiceLoss(smooth_nr=0, smooth_dr=0)
    assert same(theirs, Dice(), soft, hard)
    smoothed = monai.losses.DiceLoss()
    torch.testing.assert_close(smoothed(soft, hard), Dice()(soft, hard), rtol=0, atol=1e-7)


@BOTH
def test_neurite_dice(neurite, size):
    hard, soft = labels(size)
    other = hard.roll(3, dims=2)
    theirs = neurite.Dice(smooth_numerator=0, smooth_denominator=0)
    torch.testing.assert_close(theirs(other, hard).squeeze(), 1 - Dice()(other, hard))
    value, *_ = differences(lambda a, b: 1 - theirs(a, b), Dice(), soft, hard)
    says("test_neurite_dice", size, value)
