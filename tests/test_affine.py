"""The affine start: phantoms that are turned, shifted and scaled are found again."""

import math

import numpy as np
import pytest
import torch

from diffreg.affine.image import PlacedImage
from diffreg.affine.loss import AffineLoss
from diffreg.affine.parameters import KINDS, decomposed, generators, rotations
from diffreg.data.geometry import Image
from diffreg.registration import register_affine

SPACING = 4.0
SIZE = {2: (48, 40), 3: (27, 24, 25)}
# A body and what is in it: middles and widths in parts of the extent, and brightness.
DRAWN = np.random.default_rng(3)
BLOBS = [((0.5, 0.5, 0.5), (0.26, 0.32, 0.22), 0.7)]
for _ in range(24):
    middle, width = DRAWN.uniform(0.3, 0.7, 3), DRAWN.uniform(0.05, 0.1, 3)
    BLOBS.append((tuple(middle), tuple(width), float(DRAWN.choice([-0.4, 0.5]))))


def places(size):
    """Voxel centres in mm, (D, *S), the middle at 0."""
    axes = [SPACING * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def affine_of(size):
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[: len(size), 3] = [-SPACING * (n - 1) / 2 for n in size]
    return affine


def phantom(dimensions, world=None, contrast=lambda v: v):
    """The image m with m(T x) = f(x), on the fixed image's grid: exact, nothing is interpolated."""
    size = SIZE[dimensions]
    x = places(size)
    if world is not None:
        back = torch.from_numpy(np.linalg.inv(world))
        axes = [*range(dimensions), 3]
        back = back[axes][:, axes]
        x = torch.einsum("dk,k...->d...", back[:-1, :-1], x)
        x += back[:-1, -1].reshape(-1, *[1] * dimensions)
    value = torch.zeros(size, dtype=torch.float64)
    for middle, width, height in BLOBS:
        square = torch.zeros_like(value)
        for k in range(dimensions):
            extent = SPACING * size[k]
            square += ((x[k] / extent + 0.5 - middle[k]) / width[k]) ** 2
        value += height * torch.exp(-(square**2))
    return Image(contrast(value).float()[None, None], affine_of(size))


def turned(degrees, shift, scale=(1.0, 1.0, 1.0), axis=2):
    """Turned about an axis, shifted, scaled: (4, 4), mm."""
    angle, world = math.radians(degrees), np.eye(4)
    a, b = [k for k in range(3) if k != axis]
    world[a, a] = world[b, b] = math.cos(angle)
    world[b, a] = math.sin(angle)
    world[a, b] = -math.sin(angle)
    world[:3, :3] = world[:3, :3] @ np.diag(scale)
    world[: len(shift), 3] = shift
    return world


def apart(found, world, dimensions=3):
    """How far two maps are apart, mm: the mean over the middle half of the fixed image."""
    x = places(SIZE[dimensions]).flatten(1).numpy()
    middle = np.abs(x).max(0) < SPACING * min(SIZE[dimensions]) / 3
    x = np.vstack([x[:, middle], np.zeros((3 - dimensions, middle.sum())), np.ones(middle.sum())])
    return float(np.linalg.norm((found @ x - world @ x)[:3], axis=0).mean())


MISPLACED = {
    "translation": turned(0, (9, -7, 6)),
    "rigid": turned(20, (9, -7, 6)),
    "similarity": turned(20, (9, -7, 6), (1.1, 1.1, 1.1)),
    "affine": turned(20, (9, -7, 6), (1.1, 0.92, 1.05)),
}
# How near, in voxels: mutual information has few voxels here to tell a histogram from.
NEAR = {"ncc": 1 / 8, "mi": 1 / 2, "lncc": 1 / 4}
DARK = {"ncc": lambda v: 3 * v + 1, "mi": lambda v: (-v).exp(), "lncc": lambda v: 2 - v}


@pytest.mark.parametrize("similarity", ["ncc", "mi", "lncc"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_misplaced_volume_is_found(kind, similarity):
    world = MISPLACED[kind]
    moving, fixed = phantom(3, world, DARK[similarity]), phantom(3)
    # To lncc the flat ground weighs as much as the body, and its blobs end nowhere.
    body = Image((fixed.data > 0.02).float(), fixed.affine) if similarity == "lncc" else None
    found = register_affine(moving, fixed, kind, similarity, mask=body)
    assert found.kept and found.after > found.before
    assert apart(found.matrix, world) < NEAR[similarity] * SPACING


@pytest.mark.parametrize("similarity", ["ncc", "mi"])
def test_a_slice_moves_in_its_plane_alone(similarity):
    world = turned(20, (9, -7), (1.1, 0.92, 1.0))
    moving = phantom(2, world, DARK[similarity])
    found = register_affine(moving, phantom(2), "affine", similarity)
    assert apart(found.matrix, world, 2) < NEAR[similarity] * SPACING
    assert np.abs(found.matrix[2] - [0, 0, 1, 0]).max() < 1e-12
    assert np.abs(found.matrix[:, 2] - [0, 0, 1, 0]).max() < 1e-12


def test_the_plane_of_an_oblique_slice_is_its_own():
    world, tilt = turned(20, (9, -7)), turned(35, (5, 2, 30), axis=0)
    moving, fixed = phantom(2, world), phantom(2)
    oblique = (Image(image.data, tilt @ image.affine) for image in (moving, fixed))
    found = register_affine(*oblique, "rigid", "ncc")
    assert apart(np.linalg.inv(tilt) @ found.matrix @ tilt, world, 2) < SPACING / 8
    normal = tilt[:3, 2]
    assert np.allclose(found.matrix[:3, :3] @ normal, normal)


def test_grids_of_other_axes_and_sizes_make_no_difference():
    world = MISPLACED["rigid"]
    moving = phantom(3, world)
    flipped = moving.affine.copy()
    flipped[:3, 3] += flipped[:3, 0] * (SIZE[3][0] - 1)
    flipped[:3, 0] *= -1
    other = Image(moving.data.flip(2).transpose(3, 4), flipped[:, [0, 2, 1, 3]])
    assert apart(register_affine(other, phantom(3), "rigid", "ncc").matrix, world) < SPACING / 8


def test_what_the_map_does_is_told():
    found = register_affine(phantom(3, MISPLACED["similarity"]), phantom(3), "similarity", "ncc")
    turn, shift, scale = found.decomposition
    assert turn == pytest.approx(20, abs=0.5)
    assert shift == pytest.approx(math.sqrt(9**2 + 7**2 + 6**2), abs=0.3)
    assert scale == pytest.approx(1.1, abs=0.01)
    assert found.words.startswith(f"similarity (ncc): turned by {turn:.1f} degrees, shifted by ")
    assert "scaled by +10 %; NCC 0." in found.words and "on the common voxels" in found.words


def test_what_was_compared_is_told():
    """Where headers leave hardly a voxel in common, two numbers are of different voxels."""
    moving = phantom(3)
    away = moving.affine.copy()
    away[0, 3] += 0.93 * SPACING * SIZE[3][0]
    found = register_affine(Image(moving.data, away), phantom(3), "translation", "ncc")
    assert found.kept and not found.in_common and " on other voxels" in found.words
    assert apart(found.matrix, np.linalg.inv(moving.affine @ np.linalg.inv(away))) < SPACING / 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cropped_image_is_found(axis):
    world = MISPLACED["rigid"]
    moving = phantom(3, world)
    keep = [slice(None)] * 5
    keep[2 + axis] = slice(0, round(0.6 * SIZE[3][axis]))
    part = Image(moving.data[tuple(keep)], moving.affine)
    assert apart(register_affine(part, phantom(3), "rigid", "ncc").matrix, world) < SPACING / 4


@pytest.mark.parametrize("masked", ["moving", "fixed"])
def test_what_a_mask_leaves_out_is_not_seen(masked):
    world = MISPLACED["rigid"]
    images = {"moving": phantom(3, world), "fixed": phantom(3)}
    image = images[masked]
    data, chosen = image.data.clone(), torch.ones_like(image.data)
    data[..., :8], chosen[..., :8] = 5.0, 0.0
    mask = Image(chosen, image.affine)
    images[masked] = Image(data, image.affine)
    given = {"moving_mask" if masked == "moving" else "mask": mask}
    assert (
        apart(register_affine(*images.values(), "rigid", "ncc", **given).matrix, world)
        < SPACING / 4
    )
    # Without it, what is there is taken for a part of the body.
    assert apart(register_affine(*images.values(), "rigid", "ncc").matrix, world) > SPACING / 4


def test_any_turn_is_found_by_a_fine_search():
    world = turned(140, (9, -7, 6), axis=1) @ turned(50, (0, 0, 0), axis=0)
    found = register_affine(phantom(3, world), phantom(3), "rigid", "ncc", search=True)
    assert apart(found.matrix, world) < SPACING / 8


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_right_stays(kind):
    noise = torch.Generator().manual_seed(0)
    still = phantom(3)
    grainy = Image(still.data + 0.05 * torch.randn(still.data.shape, generator=noise), still.affine)
    found = register_affine(grainy, still, kind, "ncc")
    assert apart(found.matrix, np.eye(4)) < SPACING / 10
    assert found.after >= found.before


def test_an_image_on_itself_is_not_moved():
    found = register_affine(phantom(3), phantom(3), similarity="ncc")
    assert apart(found.matrix, np.eye(4)) < 1e-3
    if not found.kept:
        assert np.array_equal(found.matrix, np.eye(4))
        assert "not kept" in found.words


def ball():
    """A small smooth body, nearly round, of which mutual information rises where it is turned."""
    z, y, x = (torch.arange(n).float() for n in (24, 28, 20))
    z, y, x = z[:, None, None], y[:, None], x

    def bump(centre, widths, power=1):
        ways = zip((z, y, x), centre, widths, strict=True)
        return torch.exp(-(sum(((axis - c) / w) ** 2 for axis, c, w in ways) ** power))

    body = 300 * bump((12, 14, 10), (7, 8, 6), 2) + 400 * bump((9, 11, 8), (3.5, 3.5, 3.5))
    dark = 200 * bump((15, 17, 12), (3, 3, 3))
    return (body - dark).clamp(min=0).round()[None, None]


@pytest.mark.parametrize("change", ["none", "brighter", "noise"])
def test_a_start_that_lowers_the_correlation_within_a_contrast_is_not_kept(change):
    fixed = Image(ball(), np.diag([3.0, 2.0, 2.0, 1.0]))
    noise = torch.randn(fixed.data.shape, generator=torch.Generator().manual_seed(0))
    changed = {"none": 0, "brighter": fixed.data, "noise": 5 * noise}[change]
    found = register_affine(Image(fixed.data + changed, fixed.affine), fixed, similarity="mi")
    assert not found.kept and np.array_equal(found.matrix, np.eye(4))
    assert found.words.startswith("affine (mi): not kept, the headers fit as well or better; MI 1.")


def test_an_image_on_itself_is_not_moved_whatever_its_masks_leave():
    fixed = Image(ball(), np.diag([3.0, 2.0, 2.0, 1.0]))
    left = (torch.arange(20) < 12).float().expand(fixed.data.shape)
    for masks in ({"mask": Image(left.contiguous(), fixed.affine)}, {}):
        found = register_affine(fixed, fixed, similarity="mi", **masks)
        assert not found.kept and np.array_equal(found.matrix, np.eye(4))


@pytest.mark.parametrize("contrast", [lambda v: v, lambda v: 1 - v], ids=["one", "two"])
def test_mutual_information_enlarges_no_noisy_image(contrast):
    """The windows of few bins blur: a wider spread of intensities seemed to tell more."""
    noise = torch.randn(phantom(3).data.shape, generator=torch.Generator().manual_seed(0))
    grainy = Image(phantom(3).data + 0.05 * noise, affine_of(SIZE[3]))
    moving = Image(contrast(grainy.data), grainy.affine)
    found = register_affine(moving, grainy, "affine", "mi")
    assert apart(found.matrix, np.eye(4)) < SPACING / 10  # by 20 bins 0.9 SPACING


def test_images_that_the_headers_set_apart_are_brought_together():
    world = turned(0, (500, 0, 0))
    still = phantom(3)
    found = register_affine(Image(still.data, world @ still.affine), still, "rigid", "ncc")
    assert found.kept and found.start.startswith("centres of")
    assert apart(found.matrix, world) < SPACING / 8


def test_none_does_nothing():
    found = register_affine(phantom(3, MISPLACED["rigid"]), phantom(3), "none", "ncc")
    assert np.array_equal(found.matrix, np.eye(4)) and not found.kept
    assert found.before == found.after < 0.9


def test_bits_do_not_depend_on_the_number_of_threads():
    # Large enough for torch to share sums among threads.
    size = (48, 44, 40)
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 1, 7, 6, 5, generator=generator), size=size, mode="trilinear"
    )
    fixed = Image(smooth, affine_of(size))
    moving = Image(smooth, turned(10, (5, 4, -3)) @ fixed.affine)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(register_affine(moving, fixed, "rigid", "ncc").matrix)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)


def test_errors_say_what_would_be_right():
    image = phantom(3)
    empty = Image(torch.zeros_like(image.data), image.affine)
    with pytest.raises(ValueError, match=r"kind must be one of none, translation, .*got 'shear'"):
        register_affine(image, image, "shear")
    with pytest.raises(ValueError, match="must be one of auto, ncc, mi, lncc, got 'ssd'"):
        register_affine(image, image, similarity="ssd")
    with pytest.raises(TypeError, match="moving must be a path, a diffreg Image"):
        register_affine([1.0], image)
    with pytest.raises(TypeError, match="search must be bool"):
        register_affine(image, image, search=1)
    with pytest.raises(ValueError, match="selects no voxel"):
        register_affine(image, image, mask=empty)
    with pytest.raises(ValueError, match="constant where it counts"):
        register_affine(empty, image)
    with pytest.raises(ValueError, match=r"is a volume of .* a slice"):
        register_affine(image, phantom(2))
    far = Image(phantom(2).data, turned(0, (0, 0, 9)) @ phantom(2).affine)
    with pytest.raises(ValueError, match="do not lie in one plane"):
        register_affine(far, phantom(2))


def test_leaving_and_magnifying_cost_something_and_small_changes_nothing():
    image = phantom(3)
    placed = PlacedImage(image.data, None, torch.from_numpy(image.affine))
    loss = AffineLoss(placed, placed, "ncc")

    def paid(world):
        worlds = torch.from_numpy(world)[None]
        return float(loss(worlds) - loss.compared(worlds, loss.cover(worlds)))

    assert paid(np.eye(4)) == paid(turned(30, (20, 0, 0), (1.2, 0.85, 1.2))) == 0
    assert paid(turned(0, (95, 0, 0))) > 0.05
    assert paid(np.diag([0.4, 0.4, 0.4, 1])) > 0.5 and paid(np.diag([2.0, 2, 2, 1])) > 0.5


def test_many_maps_are_scored_some_at_a_time(monkeypatch):
    image = phantom(3)
    placed = PlacedImage(image.data, None, torch.from_numpy(image.affine))
    loss = AffineLoss(placed, placed, "ncc")
    worlds = torch.stack([torch.from_numpy(turned(10.0 * k, (k, 0, 0))) for k in range(5)])
    alone = [float(loss(world[None])) for world in worlds]
    monkeypatch.setattr("diffreg.affine.loss.AT_ONCE", 2)
    assert loss.scores(worlds).tolist() == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("dimensions, counts", [(2, (2, 3, 4, 6)), (3, (3, 6, 7, 12))])
def test_generators_span_the_group(dimensions, counts):
    for kind, count in zip(KINDS, counts, strict=True):
        basis = generators(kind, dimensions, 50.0)
        assert int(torch.linalg.matrix_rank(basis.flatten(1))) == len(basis) == count
        world = torch.linalg.matrix_exp(torch.tensordot(torch.ones(count).double(), basis, 1))
        turn, _, scale = decomposed(world.numpy(), np.zeros(dimensions))
        assert (turn > 1) == (kind != "translation")
        assert (abs(scale - 1) > 1e-3) == (kind in ("similarity", "affine"))
        linear = world[:-1, :-1] / scale
        assert torch.allclose(linear @ linear.T, torch.eye(dimensions).double()) == (
            kind != "affine"
        )


# A turn of a tenth of a degree.
TENTH = torch.tensor([[1.0, -0.001745], [0.001745, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("dimensions, fine, furthest", [(2, False, 7.5), (2, True, 2.5),
                                                        (3, False, 63), (3, True, 32)])  # fmt: skip
def test_every_turn_has_one_nearby(dimensions, fine, furthest):
    spread = rotations(dimensions, fine)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.linalg.qr(torch.randn(4000, dimensions, dimensions, generator=generator).double())
    drawn = drawn.Q * torch.linalg.det(drawn.Q).sign()[:, None, None]  # D = 3: -1 makes it a turn
    drawn = drawn if dimensions == 3 else rotations(2, True) @ rotations(2)[1] @ TENTH
    trace = torch.einsum("aij,bij->ab", drawn, spread).amax(1)
    cosine = ((trace - (dimensions - 2)) / 2).clamp(-1, 1)
    assert float(torch.rad2deg(cosine.acos()).max()) < furthest + 1e-6
    assert torch.equal(spread[0], torch.eye(dimensions).double())
