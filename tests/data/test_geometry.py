"""Where voxels lie: resampling through two headers, coplanar or refused, and pictures upright."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffreg.data.geometry import Image, display_orientation, voxel_map
from diffreg.data.resampling import coverage, resample_to

ORIENTATIONS = list(itertools.product((False, True), (1, -1), (1, -1)))


def image(affine=None, shape=(6, 8), ndim=3, data=None):
    data = torch.zeros(shape) if data is None else data
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
    return Image(data[None, None], affine, ndim_in_file=ndim)


def turned(degrees, axis):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine, (a, b) = np.eye(4), [k for k in range(3) if k != axis]
    affine[a, a], affine[a, b], affine[b, a], affine[b, b] = c, -s, s, c
    return affine


def oriented(base, swap, first, second):
    """The same picture in space, stored with axes swapped and flipped."""
    array, affine = base.data[0, 0], base.affine.copy()
    for axis, sign in enumerate((first, second)):
        if sign < 0:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = array.flip(axis)
    if swap:
        array, affine = array.mT, affine[:, [1, 0, 2, 3]]
    return replace(base, data=array[None, None].contiguous(), affine=affine)


def test_equal_grids_are_mapped_exactly():
    odd = np.array([[1.3, 0.2, 0, 11.7], [-0.2, 1.1, 0, -9.3], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert voxel_map(image(odd), image(odd)).tolist() == [[1, 0, 0], [0, 1, 0]]
    moving = image(odd, data=torch.rand(6, 8))
    assert torch.equal(resample_to(moving, image(odd)), moving.data)


@pytest.mark.parametrize("swap, first, second", ORIENTATIONS)
def test_orientation_of_the_array_does_not_matter(swap, first, second):
    base = image(np.diag([1.5, 2, 4, 1]), data=torch.rand(6, 8))
    again = resample_to(oriented(base, swap, first, second), base)
    torch.testing.assert_close(again, base.data, rtol=0, atol=1e-6)


def test_a_displacement_is_in_fixed_voxels():
    """The fixed voxel is two moving voxels long: u = 1 reads two moving voxels on."""
    moving = image(data=torch.arange(12.0)[:, None].expand(12, 3))
    fixed = image(np.diag([2, 1, 1, 1]), shape=(4, 3))
    displacement = torch.zeros(1, 2, 4, 3)
    displacement[0, 0] = 1
    assert resample_to(moving, fixed, displacement)[0, 0, :, 0].tolist() == [2, 4, 6, 8]


def test_padding():
    moving = image(data=torch.ones(3, 3))
    fixed = image(shape=(6, 3))
    assert resample_to(moving, fixed)[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert resample_to(moving, fixed, fill=None).min() == 1


def test_labels_keep_their_type():
    labels = replace(image(), data=torch.randint(0, 9, (1, 1, 6, 8), dtype=torch.int16))
    warped = resample_to(labels, image(), interpolation="nearest")
    assert torch.equal(warped, labels.data)
    assert warped.dtype == torch.int16


def test_a_displacement_must_be_on_the_fixed_grid():
    with pytest.raises(ValueError, match=r"must be \(1, 2, 6, 8\).*got \(1, 2, 8, 6\)"):
        resample_to(image(), image(), torch.zeros(1, 2, 8, 6))


@pytest.mark.parametrize("axis", [0, 1])
def test_tilted_planes_are_refused(axis):
    with pytest.raises(ValueError, match=r"tilted by 10\.0 degrees"):
        voxel_map(image(turned(10, axis)), image())


def test_planes_within_half_a_slice_are_one():
    thick = np.diag([1.0, 1, 4, 1])
    near, far = thick.copy(), thick.copy()
    near[2, 3], far[2, 3] = 1.9, 2.1
    assert voxel_map(image(thick), image(near)).tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match=r"up to 2\.10 mm apart, more than half a slice of 4 mm"):
        voxel_map(image(thick), image(far))


def test_a_flat_file_has_no_third_axis():
    high = np.eye(4)
    high[2, 3] = 50
    for flat, other in itertools.permutations((image(high, ndim=2), image())):
        assert voxel_map(flat, other).tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match=r"tilted by 90\.0 degrees"):
        voxel_map(image(ndim=2), image(turned(90, 0)))


def test_images_that_do_not_overlap_are_refused():
    away = np.eye(4)
    away[0, 3] = 100
    with pytest.raises(ValueError, match="do not overlap"):
        coverage(image(away), image())


def upright(array, display):
    transpose, flip_rows, flip_columns = display
    array = array.T if transpose else array
    array = array[::-1] if flip_rows else array
    return array[:, ::-1] if flip_columns else array


# (axis 0, axis 1, slice) of the array along world axes: axial, coronal, sagittal.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


@pytest.mark.parametrize("angle", [0, 20])
@pytest.mark.parametrize("plane", PLANES)
def test_every_orientation_is_drawn_alike(plane, angle):
    affine = np.eye(4)
    affine[:3, :3] = (turned(angle, 2)[:3, :3])[np.argsort(PLANES[plane])]
    base = image(affine, data=torch.arange(48.0).reshape(6, 8))
    pictures = []
    for orientation in ORIENTATIONS:
        stored = oriented(base, *orientation)
        display = display_orientation(stored.affine, "nifti")
        pictures.append(upright(stored.data[0, 0].numpy(), display))
    # The first world axis of the plane runs to the right, the second up.
    assert all(np.array_equal(picture, base.data[0, 0].numpy().T[::-1]) for picture in pictures)


def test_png_is_drawn_as_it_is():
    assert display_orientation(np.eye(4), "png") == (False, False, False)


def turned_volume(degrees=25):
    """An oblique, left-handed affine with three spacings."""
    affine = turned(degrees, 1) @ turned(-10, 0) @ np.diag([-1.5, 2.0, 4.0, 1.0])
    affine[:3, 3] = 12, -30, 7
    return affine


def test_a_volume_and_a_slice_have_one_kind_of_grid():
    volume = image(turned_volume(), shape=(5, 6, 7)).grid
    assert (volume.dimensions, volume.size) == (3, (5, 6, 7))
    np.testing.assert_allclose(volume.spacing, (1.5, 2, 4))
    np.testing.assert_allclose(volume.direction * volume.spacing, volume.axes)
    np.testing.assert_allclose(volume.centre, (volume.affine @ [2, 2.5, 3, 1])[:3])
    plane = image(turned_volume(), shape=(5, 6)).grid
    assert (plane.dimensions, plane.corners[2].tolist()) == (2, [0, 0, 0, 0])


def test_a_volume_and_a_slice_do_not_meet():
    with pytest.raises(ValueError, match=r"volume of 5 x 6 x 7 voxels.*a slice.*--slice K"):
        resample_to(image(shape=(5, 6, 7)), image())


def test_a_linear_image_is_sampled_exactly_through_oblique_grids():
    """Of intensities linear in the world every sample inside is known."""
    moving, fixed = turned_volume(), turned_volume(-15)

    def brightness(affine, shape):
        places = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
        return ((affine @ places)[:3].T @ [1.0, -2.0, 0.5]).reshape(shape)

    data = torch.from_numpy(brightness(moving, (12, 12, 12)))
    grid = image(fixed, shape=(5, 6, 7))
    found = resample_to(image(moving, data=data), grid, fill=np.pi)[0, 0].numpy()
    known = found != np.pi
    outer = coverage(image(moving, data=data[1:-1, 1:-1, 1:-1]), grid)
    expected = brightness(fixed, (5, 6, 7))
    assert 20 < known.sum() < known.size and outer.shape == (1, 1, 5, 6, 7)
    places = np.stack([*np.indices((5, 6, 7)), np.ones((5, 6, 7))]).reshape(4, -1)
    inside = (np.linalg.solve(moving, fixed @ places)[:3].T.reshape(5, 6, 7, 3) >= 0).all(-1)
    inside &= (np.linalg.solve(moving, fixed @ places)[:3].T.reshape(5, 6, 7, 3) <= 11).all(-1)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize("degrees", range(0, 90, 11))
def test_an_image_has_its_lower_faces_and_not_its_upper_ones(degrees):
    """Half a voxel beyond the outer centres, whatever the rounding of the map to them."""
    moving = image(turned_volume(degrees), shape=(4, 5, 6))
    for axis, length in enumerate(moving.shape):
        size, start = [1, 1, 1], [1.25, 2.25, 2.25]
        size[axis], start[axis] = length + 1, -0.5
        planes = moving.affine.copy()
        planes[:3, 3] += planes[:3, :3] @ start
        inside = coverage(moving, image(planes, shape=tuple(size)))
        assert inside.flatten().tolist() == [1] * length + [0]


def test_a_grid_that_is_extended_keeps_its_voxels_where_they_are():
    grid = image(turned_volume(), shape=(5, 6, 7)).grid
    larger = grid.extended((3, 0, 2), (1, 4, 0))
    assert larger.size == (9, 10, 9)
    np.testing.assert_allclose((larger.affine @ [3, 0, 2, 1])[:3], grid.origin)
    np.testing.assert_allclose(larger.axes, grid.axes)


def test_a_placed_image_is_sampled_through_the_map():
    """T brings a fixed point to where it is sampled."""
    moving = image(data=torch.rand(6, 8))
    world = np.eye(4)
    world[:2, 3] = 2, 1
    there = resample_to(moving.placed(world), image(shape=(4, 7)))
    assert torch.equal(there, moving.data[:, :, 2:, 1:])
