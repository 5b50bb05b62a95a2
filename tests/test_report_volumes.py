"""Volumes in the report: turned upright, cut into planes, packed into a page."""

import base64
import io
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from phantoms import SHAPE, SPACING, STORAGES, picture, rotation, stored_pair
from PIL import Image
from test_report import NASTY, Checker

from diffreg.data.geometry import display_orientation
from diffreg.metrics import smallest_determinant
from diffreg.report import histogram, packed, payload, rows, volumes
from diffreg.report.determinants import determinant_limit
from diffreg.report.drawing import draw_cells
from diffreg.report.figures import pair_figure, panel
from diffreg.report.histogram import histogram_figure
from diffreg.report.html import PairView, write_report
from diffreg.report.packed import determinant_bytes, largest_of_blocks, mean_of_blocks
from diffreg.report.panels import upright
from diffreg.report.rows import pair_row
from diffreg.report.viewer import MOST_BYTES
from diffreg.report.volumes import slices_of, upright_volume

UPRIGHT = stored_pair()


@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("storage", STORAGES)
def test_however_it_is_stored_a_volume_is_turned_to_the_patient(storage, degrees):
    pair = stored_pair(*storage, rotation(degrees))
    found, expected = upright_volume(pair).pair, UPRIGHT
    for name in ("moving", "fixed", "warped", "displacement"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.spacing == SPACING
    np.testing.assert_allclose(found.affine[:3, :3], rotation(degrees) * SPACING, atol=1e-12)
    np.testing.assert_allclose(found.affine[:3, 3], (10, -20, 30))


@pytest.mark.parametrize("storage", STORAGES)
def test_the_page_says_the_voxel_of_the_file(storage):
    pair = stored_pair(*storage)
    turn = volumes.turn_of(pair.affine)
    for voxel in ((0, 0, 0), (8, 2, 3)):
        there = turn.stored(SHAPE) @ (*voxel, 1)
        assert pair.fixed[tuple(there[:3].astype(int))] == UPRIGHT.fixed[voxel]


@pytest.mark.parametrize("plane", volumes.PLANES)
def test_planes_run_to_the_right_and_up(plane):
    cut = volumes.plane_view(upright_volume(UPRIGHT), plane, 5)
    shown = upright(cut.fixed, cut.display)
    np.testing.assert_array_equal(shown, picture(UPRIGHT.fixed, plane.name, 5))
    height, width = (UPRIGHT.fixed.shape[k] * SPACING[k] for k in (plane.up, plane.across))
    assert cut.aspect == pytest.approx(height / width)


@pytest.mark.parametrize("backwards", [(False,) * 3, (True, False, True), (False, True, False)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_a_plane_of_a_volume_is_drawn_as_a_slice_of_the_file_is(axes, backwards):
    """Of the plane across the last array axis, by the rule for images."""
    pair = stored_pair(axes, backwards)
    volume = upright_volume(pair)
    plane = next(plane for plane in volumes.PLANES if plane.through == axes[2])
    index = 3 if not backwards[axes[2]] else SHAPE[axes[2]] - 1 - 3
    shown = volumes.plane_view(volume, plane, index)
    expected = upright(pair.fixed[:, :, 3], display_orientation(pair.affine, "nifti"))
    np.testing.assert_array_equal(upright(shown.fixed, shown.display), expected)


def test_without_a_place_in_space_the_first_plane_is_drawn_as_it_is_stored():
    pair = PairView("a", *[UPRIGHT.fixed] * 3, np.zeros((3, *SHAPE)))
    volume = upright_volume(pair)
    plane = volumes.planes_of(volume.pair)[0]
    cut = volumes.plane_view(volume, plane, SHAPE[0] - 1 - 2)
    np.testing.assert_array_equal(upright(cut.fixed, cut.display), UPRIGHT.fixed[2])
    assert (plane.name, plane.letters) == ("Across axis 0", "")


def test_determinants_do_not_change_with_storage_and_slices_show_those_of_the_volume():
    volume = upright_volume(stored_pair((2, 0, 1), (True, False, False)))
    np.testing.assert_allclose(volume.cells, smallest_determinant(UPRIGHT.displacement))
    cut = volumes.plane_view(volume, volumes.PLANES[0], 2)
    np.testing.assert_array_equal(cut.determinants, volume.cells[:, :, 2])


def test_planes_cross_in_the_worst_cell_where_one_folds_else_in_what_is_bright():
    folded = stored_pair(fold=(4, 6, 3))
    volume = upright_volume(folded)
    assert volumes.point_of_view(volume) == volumes.worst_cell(volume.cells)
    assert np.abs(np.subtract(volumes.worst_cell(volume.cells), (4, 6, 3))).max() <= 1
    image = np.zeros(SHAPE)
    image[6:9, 1:4, 4:7] = 1
    still = PairView("a", *[image] * 3, np.zeros((3, *SHAPE)), affine=np.eye(4))
    assert volumes.point_of_view(upright_volume(still)) == (7, 2, 5)
    cells = np.ones((3, 3, 3))
    cells[1, 2, 0], cells[0, 0, 0] = np.nan, -5
    assert volumes.worst_cell(cells) == (1, 2, 0)


def unpacked(text: str, shape) -> np.ndarray:
    """What browser/volumes.js does, voxel by voxel."""
    volume = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    volume = np.pad(volume.reshape(shape, order="F").astype(int), ((1, 0),) * 3)
    for x, y, z in np.argwhere(np.ones(shape)) + 1:
        one = volume[x - 1, y, z] + volume[x, y - 1, z] + volume[x, y, z - 1]
        two = volume[x - 1, y - 1, z] + volume[x - 1, y, z - 1] + volume[x, y - 1, z - 1]
        volume[x, y, z] = (volume[x, y, z] + min(max(2 * one - two, 0), 765) // 3) % 256
    return volume[1:, 1:, 1:]


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 4, 3), (2, 1, 1)])
def test_packed_volumes_are_lossless(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for volume in (noise, 255 * (noise > 99).astype(np.uint8)):
        np.testing.assert_array_equal(unpacked(packed.packed(volume), shape), volume)


def test_one_folded_cell_is_seen_in_a_volume_that_is_drawn_coarser():
    cells = np.ones((20, 9, 9))
    cells[13, 4, 5] = -1
    codes = 255 - largest_of_blocks(255 - determinant_bytes(cells), (7, 9, 9))
    block = packed.block_of((13, 4, 5), cells.shape, (7, 9, 9))
    assert np.argwhere(codes == 0).tolist() == [block] == [[4, 4, 5]]


def test_blocks_are_means_and_labels_keep_their_names():
    volume = np.arange(12.0).reshape(12, 1, 1)
    assert mean_of_blocks(volume, (4, 1, 1)).ravel().tolist() == [1, 4, 7, 10]
    assert packed.middle_of_blocks(volume, (4, 1, 1)).ravel().tolist() == [1, 4, 7, 10]


def test_volumes_are_drawn_coarser_until_they_fit():
    pair = upright_volume(stored_pair(shape=(120, 12, 12)))
    full = payload.payload(pair, MOST_BYTES)
    assert full["shape"] == (120, 12, 12)
    size = sum(map(len, full["channels"].values()))
    found = payload.payload(pair, round(0.6 * size))
    assert sum(map(len, found["channels"].values())) <= 0.6 * size
    assert found["shape"][0] < 120 and found["shape"][1:] == (12, 12)
    assert found["spacing"][0] == pytest.approx(SPACING[0] * 120 / found["shape"][0])


def test_labels_are_numbered_and_more_than_a_byte_has_are_not_named():
    few = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 7 * 10
    volume = upright_volume(stored_pair(fixed_labels=few, warped_labels=few + 500))
    found = payload.payload(volume, MOST_BYTES)
    assert found["labels"] == [*range(0, 70, 10), *range(500, 570, 10)]
    numbers = zlib.decompress(base64.b64decode(found["channels"]["warped_labels"]))
    assert [found["labels"][number] for number in numbers[:2]] == [500, 500 + few[1, 0, 0]]
    many = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert payload.payload(upright_volume(stored_pair(fixed_labels=many)), 10**7)["labels"] is None


@pytest.fixture
def page(tmp_path):
    def write(pairs, **keywords):
        path = tmp_path / "report.html"
        write_report(path, NASTY, [("NCC", (0.5, 0.75))], pairs, **keywords)
        found = Checker()
        found.source = path.read_text(encoding="utf-8")
        found.feed(found.source)
        found.close()
        assert found.open == []
        found.words = re.sub(r"\s+", " ", " ".join(found.text))
        return found

    return write


def data_of(source: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', source)[1])


def test_the_page_of_a_volume_fetches_nothing_and_escapes_what_the_user_wrote(page):
    found = page([stored_pair()])
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert "http" not in re.sub(r'"data:[^"]*"', "", found.source)
    assert NASTY not in found.source and found.source.count("<script") == 2
    assert "No cell folds at any corner" in found.words or "cells fold" in found.words
    assert "The patient's left is on the left" in found.words
    assert data_of(found.source)["shape"] == list(SHAPE)


def test_the_same_volume_gives_the_same_bytes(page):
    assert page([stored_pair()]).source == page([stored_pair()]).source


def test_a_tilted_volume_says_so(page):
    assert "tilted by up to" in page([stored_pair(turn=rotation(25))]).words
    assert "tilted by up to" not in page([stored_pair()]).words


def test_several_volumes_have_rows_without_a_viewer(page):
    pairs = [stored_pair(), stored_pair(fold=(4, 6, 3)), pair_row(stored_pair((2, 1, 0)))]
    found = page(pairs)
    assert found.source.count("<script") == 1 and found.source.count('class="pair row"') == 3
    small = [image["alt"] for image in found.images if image["alt"].startswith("Coronal overlay")]
    assert small == [f"Coronal overlay {when}: phantom" for when in ("before", "after")] * 3
    assert re.search(r"cells? folds?, in \d of 3 pairs", found.words)


def test_small_pictures_are_upright_and_green_where_only_the_fixed_image_is(page):
    fixed = np.zeros((12, 16, 10))
    fixed[9:, 12:, 7:] = 200  # right, front, head
    pair = PairView("a", fixed * 0, fixed, fixed, np.zeros((3, 12, 16, 10)), affine=np.eye(4))
    for plane in pair_row(pair).planes:
        before, after = (
            np.asarray(Image.open(io.BytesIO(file))).astype(int)
            for file in (plane.before, plane.after)
        )
        assert (before[1, -2] - before[1, 1])[1] > 200 > 60 > before[1, -2][[0, 2]].max()
        assert after[1, -2].min() > 200


def test_a_hundred_pairs_stay_below_ten_megabytes(page):
    """Noise, the worst that JPEG can meet."""
    row = pair_row(stored_pair(shape=(160, 120, 1)))
    assert 5000 < len(row.planes[0].before) <= rows.MOST_BYTES
    full = replace(row, planes=(row.planes[0],) * 3)
    assert len(page([full] * 100).source) < 10e6


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 4), (3, 1, 4), (2, 2, 2)])
def test_the_smallest_volumes_have_a_page(page, shape):
    found = page([stored_pair(shape=shape)])
    assert data_of(found.source)["shape"] == list(shape)


def test_what_is_not_finite_is_drawn_and_said(page):
    pair = stored_pair()
    pair.displacement[0, 4, 6, 3] = np.nan
    pair.moving[2, 2, 2] = np.nan
    found = page([pair])
    assert "the displacement is not finite everywhere" in found.words
    assert data_of(found.source)["folded"] > 0


@pytest.mark.parametrize("storage", [STORAGES[0], STORAGES[13], STORAGES[46]])
def test_the_figure_of_a_volume_has_three_planes_whatever_its_storage(storage):
    found = np.asarray(Image.open(io.BytesIO(pair_figure(stored_pair(*storage), 0.8))))
    expected = np.asarray(Image.open(io.BytesIO(pair_figure(UPRIGHT, 0.8))))
    assert np.abs(found.astype(int) - expected).max() <= 2
    high, wide = found.shape[:2]
    assert high > 2.2 * 0.8 * 150 and wide > 4 * 0.8 * 150


def test_a_determinant_has_one_colour_in_all_planes_of_a_volume():
    """However little a plane's own cells change."""
    volume = upright_volume(stored_pair())
    limits = {cut.determinant_limit for _, cut in slices_of(volume)}
    assert limits == {determinant_limit(volume.cells)}
    _, still = slices_of(volume)[0]
    still.determinants = np.full_like(still.determinants, 2.0)
    pale, dark = (panel(draw_cells, replace(still, determinant_limit=k), 60) for k in (8.0, None))
    assert pale != dark


def test_the_histogram_has_a_bar_for_what_folds():
    def pixels(cells):
        return np.asarray(Image.open(io.BytesIO(histogram_figure(cells))).convert("RGB"))

    folded = (255, 31, 143)
    assert (pixels(np.array([1.0, -0.5, np.nan])) == folded).all(-1).any()
    assert not (pixels(np.array([1.0, 0.5, 30.0])) == folded).all(-1).any()
    histogram_figure(np.zeros(0))


def test_the_histogram_says_what_its_last_bars_hold(monkeypatch):
    names = []
    monkeypatch.setattr(
        histogram,
        "png_file",
        lambda figure, dpi: names.append(
            [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ),
    )
    for smallest in (0.0024, 1 / 16):
        histogram_figure(np.array([smallest, 1.0, 2.0]))
    assert [name[0] for name in names] == ["\N{LESS-THAN OR EQUAL TO} 1/16", "1/16"]
    assert names[1][1:] == ["1/8", "1/4", "1/2", "1", "2", "4", "8", "16"]
