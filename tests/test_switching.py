"""Every row of docs/switching.md: theirs against ours, in value and gradients.

A test is named in the last column of its row, and every percentage in that row is measured here.
"""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from diffreg.fields import identity_grid, integrate, resize
from diffreg.losses import LNCC, MI, SSD, Dice
from diffreg.ops import correlation, deformation_energy, jacobian_determinant, warp

PAGE = Path(__file__).parents[1] / "docs" / "switching.md"
SIZE = (64, 48)
D = 2

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


def indices():
    return identity_grid(SIZE, dtype=torch.float64)[0]


def moving():
    i, j = indices()
    first = 0.5 + 0.3 * torch.sin(0.35 * i + 0.2 * j) + 0.15 * torch.cos(0.5 * j)
    return torch.stack([first, first.flip(0)])[:, None]


def fixed():
    i, j = indices()
    first = 0.5 + 0.3 * torch.sin(0.35 * i + 0.2 * j + 0.7) + 0.1 * torch.cos(0.45 * i)
    return torch.stack([first, first.flip(0)])[:, None]


def displacement():
    i, j = indices()
    first = torch.stack([3 * torch.sin(0.1 * i + 0.04 * j), 2.5 * torch.cos(0.05 * i - 0.12 * j)])
    return torch.stack([first, -0.5 * first])


def differences(theirs, ours, *inputs, margin=0):
    """|theirs - ours| / |ours| of the value and of each gradient, `margin` voxels inside."""
    sides = []
    for function in (theirs, ours):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        value = function(*leaves).squeeze()
        upstream = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        gradients = torch.autograd.grad((value * upstream).sum(), leaves)
        inner = (..., *(slice(margin, n - margin) for n in SIZE))
        sides.append([value.detach(), *(gradient[inner] for gradient in gradients)])
    return [((a - b).norm() / b.norm()).item() for a, b in zip(*sides, strict=True)]


def same(theirs, ours, *inputs):
    """Nothing but rounding in double precision between them."""
    return max(differences(theirs, ours, *inputs)) < 1e-12


def says(test, *shares):
    """The row of the test gives these shares as its percentages, in this order."""
    measured = [f"{100 * share:.2g}" for share in shares]
    assert re.findall(r"([\d.]+) %", ROWS[test]) == measured


def test_every_row_has_its_test_and_every_test_its_row():
    own = {name for name in globals() if name.startswith("test_")}
    assert set(ROWS) == own - {"test_every_row_has_its_test_and_every_test_its_row"}
    rows = [line for line in PAGE.read_text().splitlines() if line.count("|") == 5]
    rows = [row for row in rows if not row.startswith(("| theirs", "|---"))]
    assert len(rows) == len(ROWS)


# Warping


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_monai_warp(monai, padding):
    theirs = monai.Warp("bilinear", padding)
    assert same(theirs, lambda x, u: warp(x, u, padding=padding), moving(), displacement())


def test_monai_warp_nearest(monai):
    labels, u = (5 * moving()).long(), displacement() + 0.01  # no point half way
    theirs = monai.Warp("nearest", "border")
    ours = warp(labels, u, interpolation="nearest")
    assert torch.equal(theirs(labels.double(), u).long(), ours)
    row = torch.arange(4.0).reshape(1, 1, 1, 4)
    half = torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1).expand(1, 2, 1, 4)
    assert warp(row, half, interpolation="nearest").flatten().tolist() == [1, 2, 3, 3]


def test_monai_meta_tensor(monai):
    image = monai.MetaTensor(moving(), meta={"patient": "first"}).requires_grad_()
    warped = warp(image, displacement())
    assert warped.meta["patient"] == "first"
    correlation(warped, monai.MetaTensor(fixed())).sum().backward()
    assert image.grad.abs().sum() > 0


def test_voxelmorph_spatial_transformer(voxelmorph):
    theirs = voxelmorph.nn.modules.SpatialTransformer()
    assert same(theirs, lambda x, u: warp(x, u, padding="zeros"), moving(), displacement())


def test_grid_sample():
    sizes = torch.tensor(SIZE, dtype=torch.float64)

    def theirs(x, grid):
        return F.grid_sample(x, grid, padding_mode="border", align_corners=True)

    def ours(x, grid):
        points = (grid.flip(-1) + 1) / 2 * (sizes - 1)
        return warp(x, points.movedim(-1, 1) - indices())

    points = (indices() + displacement()).movedim(1, -1)
    assert same(theirs, ours, moving(), (2 * points / (sizes - 1) - 1).flip(-1))


def test_grid_sample_with_corners_not_aligned():
    sizes = torch.tensor(SIZE, dtype=torch.float64)

    def theirs(x, grid):
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def ours(x, grid):
        points = ((grid.flip(-1) + 1) * sizes - 1) / 2
        return warp(x, points.movedim(-1, 1) - indices())

    points = (indices() + displacement()).movedim(1, -1)
    assert same(theirs, ours, moving(), ((2 * points + 1) / sizes - 1).flip(-1))


def test_identity(monai):
    """Rounding decides here, in single precision: the share is known to within its order."""
    image = moving().float()
    zero = torch.zeros(2, 2, *SIZE, requires_grad=True)
    gradients = []
    for function in (monai.Warp("bilinear", "border"), warp):
        warped = function(image, zero)
        gradients += torch.autograd.grad(warped.sum(), zero)
    assert torch.equal(warp(image, zero), image)
    left, right = gradients
    wrong = ((left - right).abs() > 1e-3 * right.abs().max()).double().mean()
    assert 0.05 < wrong < 0.5


def test_monai_integration(monai):
    velocity = 2 * displacement()
    theirs = monai.DVF2DDF(7, padding_mode="border")
    assert same(theirs, lambda v: integrate(v, 7), velocity)
    value, _ = differences(monai.DVF2DDF(7), lambda v: integrate(v, 7), velocity)
    says("test_monai_integration", value)


def test_voxelmorph_integration(voxelmorph):
    velocity = 2 * displacement()
    theirs = voxelmorph.nn.modules.IntegrateVelocityField(steps=7)
    value, _ = differences(theirs, lambda v: integrate(v, 7), velocity)
    says("test_voxelmorph_integration", value)

    def written_out(velocity):
        u = velocity / 2**7
        for _ in range(7):
            u = u + warp(u, u, padding="zeros")
        return u

    assert same(theirs, written_out, velocity)


def test_voxelmorph_resize(voxelmorph):
    theirs = voxelmorph.nn.modules.ResizeDisplacementField(2.0)
    shape = [2 * n for n in SIZE]
    value, _ = differences(theirs, lambda u: resize(u, shape), displacement())
    says("test_voxelmorph_resize", value)
    constant = torch.ones_like(displacement())
    torch.testing.assert_close(theirs(constant), resize(constant, shape))


def test_voxelmorph_jacobian_determinant(voxelmorph):
    stretch = 0.25 * indices() * torch.tensor([1.0, -2.0]).reshape(2, 1, 1)
    as_array = stretch.movedim(0, -1).numpy()
    theirs = voxelmorph.py.utils.jacobian_determinant(as_array)
    ours = jacobian_determinant(stretch[None])
    assert theirs == pytest.approx(1.25 * 0.5) and ours.numpy() == pytest.approx(1.25 * 0.5)
    # Every second column displaced by 1.2: central differences see two equal neighbours.
    i, j = indices()
    comb = torch.stack([torch.zeros_like(i), 0.6 * (-1) ** j])
    inner = voxelmorph.py.utils.jacobian_determinant(comb.movedim(0, -1).numpy())[:, 1:-1]
    assert inner.min() == pytest.approx(1)
    folded = (jacobian_determinant(comb[None], reduce="min") <= 0).double().mean().item()
    says("test_voxelmorph_jacobian_determinant", (inner <= 0).mean(), folded)


# Energies


def test_neurite_spatial_gradient(neurite):
    theirs = neurite.SpatialGradient("l2")
    assert same(theirs, lambda u: deformation_energy(u).diffusion.mean() / D**2, displacement())


def checkerboard():
    i, j = indices()
    component = (-1.0) ** (i + j)
    return torch.stack([component, torch.zeros_like(component)])[None]


def test_monai_diffusion(monai):
    theirs = monai.losses.DiffusionLoss()

    def ours(u):
        return deformation_energy(u).diffusion.mean() / D

    _, inner = differences(theirs, ours, displacement(), margin=4)
    says("test_monai_diffusion", *differences(theirs, ours, displacement()), inner)
    assert theirs(checkerboard()) == 0
    assert ours(checkerboard()) == pytest.approx(4)
    i, j = indices()
    affine = torch.stack([0.2 * i - 0.1 * j, 0.3 * j])[None]
    torch.testing.assert_close(theirs(affine), ours(affine))


def test_monai_bending(monai):
    theirs = monai.losses.BendingEnergyLoss()

    def ours(u):
        return deformation_energy(u).bending.mean() / D

    _, inner = differences(theirs, ours, displacement(), margin=4)
    says("test_monai_bending", *differences(theirs, ours, displacement()), inner)
    assert theirs(checkerboard()) == pytest.approx(16)
    assert ours(checkerboard()) == pytest.approx(32)
    i, j = indices()
    quadratic = torch.stack([0.02 * i * j, 0.01 * i**2 - 0.03 * j**2])[None]
    torch.testing.assert_close(theirs(quadratic), ours(quadratic))


def test_monai_normalize(monai):
    spacing = [1 / n for n in SIZE]
    i, j = indices()
    quadratic = torch.stack([0.02 * i * j, 0.01 * i**2 - 0.03 * j**2])[None]
    theirs = monai.losses.BendingEnergyLoss(normalize=True)(quadratic)
    torch.testing.assert_close(theirs, deformation_energy(quadratic, spacing).bending[0] / D)
    affine = torch.stack([0.2 * i - 0.1 * j, 0.3 * j])[None]
    theirs = monai.losses.DiffusionLoss(normalize=True)(affine)
    torch.testing.assert_close(theirs, deformation_energy(affine, spacing).diffusion[0] / D)


# Similarities


def test_mean_squared_error(neurite):
    assert same(torch.nn.MSELoss(), SSD(), moving(), fixed())
    assert same(neurite.MSE(), SSD(), moving(), fixed())


def inside(window):
    """1 where the whole window lies in the image."""
    half = window // 2
    mask = torch.zeros(2, 1, *SIZE, dtype=torch.float64)
    mask[..., half:-half, half:-half] = 1
    return mask


def test_monai_local_correlation(monai):
    theirs = monai.losses.LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9)
    raw = monai.losses.LocalNormalizedCrossCorrelationLoss(
        spatial_dims=2, kernel_size=9, reduction="none"
    )
    mask = inside(9)

    def theirs_inside(w, f):
        return 1 + (raw(w, f) * mask).sum() / mask.sum()

    assert same(theirs_inside, lambda w, f: LNCC(window=9)(w, f, mask), moving(), fixed())
    ours = LNCC(window=9)
    says(
        "test_monai_local_correlation",
        *differences(lambda w, f: 1 + theirs(w, f), ours, moving(), fixed())[:2],
    )


def test_neurite_local_correlation(neurite):
    theirs, ours = neurite.NCC(window_size=9), LNCC(window=9)
    says(
        "test_neurite_local_correlation",
        *differences(lambda w, f: 1 - theirs(w, f), ours, moving(), fixed())[:2],
    )


def test_guard_of_a_flat_window(monai):
    # Noise of variance 1e-6, below our guard of 1e-5 and above theirs, 1e-5 / 81.
    generator = torch.Generator().manual_seed(0)
    noise = 1e-3 * torch.randn(2, 1, *SIZE, generator=generator, dtype=torch.float64)
    flat, mask = 0.5 + noise, inside(9)
    loss = monai.losses.LocalNormalizedCrossCorrelationLoss(2, 9, reduction="none")
    theirs = 1 + (loss(flat, flat) * mask).sum() / mask.sum()
    assert theirs == pytest.approx(0, abs=1e-9)
    assert LNCC(window=9)(flat, flat, mask) == pytest.approx(0.99, abs=5e-3)


def test_monai_mutual_information(monai):
    def apart(kernel):
        loss = monai.losses.GlobalMutualInformationLoss(kernel, num_bins=32)
        theirs, ours = loss(moving(), fixed()), MI(bins=32)(moving(), fixed())
        return abs((theirs - ours) / ours).item()

    says("test_monai_mutual_information", apart("b-spline"), apart("gaussian"))


def labels():
    """Two labels as channels, hard and softened by a warp, (2, 2, *S) each."""
    disc = (moving() > 0.6).double()
    hard = torch.cat([disc, 1 - disc], 1)
    return hard, warp(hard, displacement())


def test_monai_dice(monai):
    hard, soft = labels()
    theirs = monai.losses.DiceLoss(smooth_nr=0, smooth_dr=0)
    assert same(theirs, Dice(), soft, hard)
    smoothed = monai.losses.DiceLoss()
    torch.testing.assert_close(smoothed(soft, hard), Dice()(soft, hard), rtol=0, atol=1e-7)


def test_neurite_dice(neurite):
    hard, soft = labels()
    other = hard.roll(3, dims=2)
    theirs = neurite.Dice(smooth_numerator=0, smooth_denominator=0)
    torch.testing.assert_close(theirs(other, hard).squeeze(), 1 - Dice()(other, hard))
    value, *_ = differences(lambda a, b: 1 - theirs(a, b), Dice(), soft, hard)
    says("test_neurite_dice", value)
