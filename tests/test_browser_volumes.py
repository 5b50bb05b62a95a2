"""The viewer of a volume shows what the arrays hold, pixel by pixel."""

from functools import partial

import numpy as np
import pytest
from phantoms import SHAPE, SPACING, picture
from viewer_page import (
    FOLD,
    LAYERS,
    PLANES,
    THROUGH,
    UPRIGHT,
    choose,
    colour,
    drawn,
    element,
    fade,
    figure,
    go,
    open_page,
    pixels,
    write_pages,
)

from diffreg.metrics import smallest_determinant
from diffreg.report.determinants import FOLDED
from diffreg.report.packed import determinant_bytes
from diffreg.report.viewer import FIXED_OUTLINE

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # selenium's own, of its use of the standard library
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    write_pages(folder)
    return folder


@pytest.fixture
def opened(browser, pages):
    return partial(open_page, browser, pages)


@pytest.mark.parametrize("plane", PLANES)
def test_the_checkerboard_takes_squares_of_warped_and_fixed_in_turn(browser, opened, plane):
    opened("folded")
    go(browser, 3, 7, 4)
    choose(browser, "checkerboard")
    fixed, warped = (
        picture(getattr(UPRIGHT, name), plane, (3, 7, 4)[THROUGH[plane]])
        for name in ("fixed", "warped")
    )
    across, up = (SPACING[k] for k in range(3) if k != THROUGH[plane])
    tile = max(np.multiply(SHAPE, SPACING)) / 8
    down = (np.arange(len(fixed)) + 0.5) * up // tile
    right = (np.arange(len(fixed[0])) + 0.5) * across // tile
    expected = np.where((down[:, None] + right) % 2 == 1, fixed, warped)
    np.testing.assert_array_equal(pixels(browser, plane)[..., 0], expected)


@pytest.mark.parametrize("plane", PLANES)
def test_the_determinant_of_every_cell_has_its_colour(browser, opened, plane):
    opened("folded")
    choose(browser, "determinant")
    here = FOLD
    go(browser, *here)
    codes = np.pad(
        determinant_bytes(smallest_determinant(UPRIGHT.displacement)), ((0, 1),) * 3, "edge"
    )
    codes = picture(codes, plane, here[THROUGH[plane]])
    found = pixels(browser, plane)[..., :3]
    assert len(np.unique(codes)) > 20
    for code in np.unique(codes):  # one colour for each number
        assert len(np.unique(found[codes == code], axis=0)) == 1
    folded = colour(FOLDED)
    np.testing.assert_array_equal((found == folded).all(-1), codes == 0)
    assert (codes == 0).any()


def test_the_mesh_is_linear_between_layers_of_nodes(browser, opened):
    opened("long")
    choose(browser, "mesh")
    first = int(np.nonzero(np.diff(LAYERS) == 2)[0][0])
    places = []
    for x in (LAYERS[first], LAYERS[first] + 1, LAYERS[first] + 2):
        go(browser, int(x), 5, 0)
        lines = pixels(browser, "Sagittal", "lines").astype(int)
        line = lines[len(lines) // 4]
        green = np.nonzero((line[:, 1] - line[:, 0] > 40) & (line[:, 3] > 100))[0]
        places.append(green.min() / len(line) * 6 - 0.5)
    still, between, moved = places if first % 2 == 0 else places[::-1]
    assert (still, between, moved) == pytest.approx((0, 1, 2), abs=0.1)


@pytest.mark.parametrize("plane", PLANES)
def test_a_cell_and_its_ring_lie_between_voxel_centres(browser, opened, plane):
    opened("folded")
    drawn(browser)
    cells = smallest_determinant(UPRIGHT.displacement)
    worst = np.unravel_index(cells.argmin(), cells.shape)
    across, up = (k for k in range(3) if k != THROUGH[plane])
    (left, top, _, _), (x, y, width, height) = browser.execute_script(
        "return ['.frame', '.slice'].map((name) => { const b = document.querySelector("
        "arguments[0] + ' ' + name).getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height] })",
        figure(plane),
    )
    assert (x - left, top - y) == pytest.approx(
        (0.5 * width / SHAPE[across], 0.5 * height / SHAPE[up]), abs=0.1
    )
    lines = pixels(browser, plane, "lines").astype(int)
    rows, columns = np.nonzero(np.abs(lines[..., :3] - colour(FOLDED)).max(-1) < 3)
    high, wide = lines.shape[:2]
    assert (columns.min() + columns.max() + 1) / 2 / wide * SHAPE[across] == pytest.approx(
        worst[across] + 1, abs=0.05
    )
    assert (1 - (rows.min() + rows.max() + 1) / 2 / high) * SHAPE[up] == pytest.approx(
        worst[up] + 1, abs=0.05
    )


def test_letters_say_what_lies_at_the_edges(browser, opened):
    opened("folded")
    letters = [
        [
            element(browser, f"{figure(plane)} .{side}").text
            for side in ("left", "right", "top", "bottom")
        ]
        for plane in PLANES
    ]
    assert ["".join(four) for four in letters] == ["LRAP", "LRSI", "PASI"]


def test_outlines_run_along_the_border_of_a_label(browser, opened):
    opened("plain")
    go(browser, 6, 5, 3)

    def outlined() -> np.ndarray:
        lines = pixels(browser, "Axial", "lines")
        return (np.abs(lines[..., :3] - colour(FIXED_OUTLINE)).max(-1) < 40) & (lines[..., 3] > 100)

    found = outlined()
    rows, columns = np.nonzero(found)
    high, wide = found.shape
    x, y = columns * SHAPE[0] / wide, SHAPE[1] - rows * SHAPE[1] / high
    # Labels are 5 <= x < 8 and 3 <= y < 7; the moving ones, drawn before, are one further.
    assert (x.min(), x.max()) == pytest.approx((5, 8), abs=0.15)
    assert (y.min(), y.max()) == pytest.approx((3, 7), abs=0.15)
    browser.execute_script("document.querySelector('.shown [value=labels]').click()")
    assert not outlined().any()


def test_the_mesh_goes_where_the_displacement_points_and_fades(browser, opened):
    opened("plain")
    choose(browser, "mesh")
    go(browser, 8, 0, 3)

    def columns_of(row: int) -> np.ndarray:
        """Where lines cross the middle of the row of voxels y, in voxels."""
        lines = pixels(browser, "Axial", "lines").astype(int)
        high, wide = lines.shape[:2]
        line = lines[round((SHAPE[1] - 0.5 - row) / SHAPE[1] * high) - 8]
        green = (line[:, 1] - line[:, 0] > 40) & (line[:, 3] > 100)
        return np.nonzero(green)[0] / wide * SHAPE[0] - 0.5

    for percent in (0, 100):
        fade(browser, percent)
        found = columns_of(9)
        moved = percent / 100 * 2 * 9 / (SHAPE[1] - 1)
        # Every second voxel's line, as far as it stays in the picture.
        for x in range(0, SHAPE[0] - 3, 2):
            assert np.abs(found - (x + moved)).min() < 0.2, (percent, x)


@pytest.mark.parametrize("view", ["400", "1400"])
def test_planes_keep_the_proportions_of_the_patient(browser, opened, view):
    opened("folded", view)
    lengths = np.multiply(SHAPE, SPACING)
    for plane, (across, up) in zip(PLANES, ((0, 1), (0, 2), (1, 2)), strict=True):
        size = element(browser, f"{figure(plane)} .frame").size
        assert size["height"] / size["width"] == pytest.approx(
            lengths[up] / lengths[across], rel=0.02
        )
