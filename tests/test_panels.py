import io
import itertools

import numpy as np
import pytest
from PIL import Image

from diffreg.report import panels
from diffreg.report.panels import PairView

DISPLAYS = list(itertools.product((False, True), repeat=3))


def stored(picture: np.ndarray, display: tuple[bool, bool, bool]) -> np.ndarray:
    """The array that `upright` turns into this picture."""
    transpose, flip_rows, flip_columns = display
    picture = picture[:, ::-1] if flip_columns else picture
    picture = picture[::-1] if flip_rows else picture
    return picture.T if transpose else picture


def stored_displacement(rows, columns, display):
    """The displacement, in array axes, that moves by these rows and columns in the picture."""
    transpose, flip_rows, flip_columns = display
    components = [
        stored(-rows if flip_rows else rows, display),
        stored(-columns if flip_columns else columns, display),
    ]
    return np.stack(components[::-1] if transpose else components)


def phantom_view(display=(False, False, False), push=6.0) -> PairView:
    """A 40 x 60 picture of an L with a hat; a bump at the upper right pushes to the right."""
    picture = np.zeros((40, 60))
    picture[6:34, 10:14] = picture[30:34, 10:40] = 1
    picture[6:9, 10:22] = 0.6
    r, c = np.indices(picture.shape)
    bump = push * np.exp(-((r - 10) ** 2 + (c - 45) ** 2) / 60)
    image = stored(picture, display)
    warped = stored(np.roll(picture, 3, axis=1), display)
    spacing = (1.0, 1.5) if display[0] else (1.5, 1.0)
    displacement = stored_displacement(np.zeros_like(bump), bump, display)
    mask = stored(picture > 0.5, display)
    return PairView("L", image, image, warped, displacement, spacing, display, mask=mask)


@pytest.mark.parametrize("display", DISPLAYS)
def test_upright_undoes_how_the_array_is_stored(display):
    picture = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(panels.upright(stored(picture, display), display), picture)


@pytest.mark.parametrize("display", DISPLAYS)
def test_points_land_on_their_pixels(display):
    image = np.arange(12).reshape(3, 4)
    rows, columns = panels.upright_points(np.indices(image.shape), image.shape, display)
    np.testing.assert_array_equal(panels.upright(image, display)[rows, columns], image)


@pytest.mark.parametrize("display", DISPLAYS)
def test_every_orientation_gives_the_same_panels(display):
    view, expected = phantom_view(display), phantom_view()
    for draw in (panels.checkerboard, panels.outlined):
        np.testing.assert_array_equal(draw(view), draw(expected))
    assert view.aspect == expected.aspect == 1.0


def test_overlay_is_green_where_only_fixed_and_magenta_where_only_the_image_is_bright():
    image, fixed = np.array([[1.0, 0.0, 1.0]]), np.array([[0.0, 1.0, 1.0]])
    found = panels.overlay(image, fixed, ((0, 1), (0, 1)), (False, False, False))
    assert found.tolist() == [[[255, 0, 255], [0, 255, 0], [255, 255, 255]]]


def test_checkerboard_takes_squares_of_warped_and_fixed_in_turn():
    zeros = np.zeros((8, 8))
    ramp = np.tile(np.linspace(0.5, 1, 8), (8, 1))
    view = PairView("a", zeros, ramp, zeros, np.zeros((2, 8, 8)))
    takes_fixed = panels.checkerboard(view, tiles=4)[:, 4:, 0] > 0
    expected = np.kron([[0, 1], [1, 0], [0, 1], [1, 0]], np.ones((2, 2))) > 0
    np.testing.assert_array_equal(takes_fixed, expected)


def test_a_constant_and_a_nan_image_are_drawn_black():
    for image in (np.full((3, 3), 7.0), np.full((3, 3), np.nan)):
        picture = panels.grey(image, panels.window(image), (False, False, False))
        assert picture.shape == (3, 3, 3) and not picture.any()


def test_the_window_ignores_what_is_not_finite():
    assert panels.window(np.array([np.nan, np.inf, 2.0, 5.0])) == pytest.approx((2.015, 4.985))


def test_png_keeps_the_pixels_and_shrinks_what_is_large():
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(panels.png(picture)))), picture)
    large = np.zeros((200, 3000, 3), np.uint8)
    assert Image.open(io.BytesIO(panels.png(large, 300))).size == (300, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fixed": np.zeros((1, 1, 4, 5))},
            r"fixed must be \(H, W\) or \(X, Y, Z\), got \[1, 1, 4",
        ),
        ({"fixed": np.zeros((2, 4, 5))}, r"displacement must be \[3, 2, 4, 5\], got \[2, 4, 5\]"),
        ({"moving": np.zeros((5, 4))}, r"moving must be \[4, 5\], got \[5, 4\]"),
        ({"displacement": np.zeros((4, 5, 2))}, r"displacement must be \[2, 4, 5\]"),
        ({"mask": np.zeros((2, 2))}, r"mask must be \[4, 5\], got \[2, 2\]"),
        ({"spacing": (1.0, 1.0, 1.0)}, r"spacing must be two lengths > 0"),
        ({"affine": np.eye(3)}, r"affine must be \[4, 4\], got \[3, 3\]"),
        ({"fixed_labels": np.zeros((4, 4))}, r"fixed_labels must be \[4, 5\], got \[4, 4\]"),
        ({"spacing": (1.0, 0.0)}, r"spacing must be two lengths > 0, got \[1.0, 0.0\]"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(change, message):
    image = np.zeros((4, 5))
    arguments = {"moving": image, "fixed": image, "warped": image}
    arguments |= {"displacement": np.zeros((2, 4, 5)), **change}
    with pytest.raises(ValueError, match=message):
        PairView("a", **arguments)
