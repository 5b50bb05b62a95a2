import importlib.util
import io
import itertools
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from diffreg.report import charts, drawing, figures, viewer
from diffreg.report.boxes import boxes_figure
from diffreg.report.determinants import FOLDED as FOLDED_COLOUR
from diffreg.report.determinants import determinant_limit
from diffreg.report.histogram import histogram_figure
from diffreg.report.panels import PairView
from diffreg.report.volumes import upright_volume

DISPLAYS = list(itertools.product((False, True), repeat=3))
FOLDED = np.rint(255 * np.array(to_rgb(FOLDED_COLOUR)))

spec = importlib.util.spec_from_file_location("views", Path(__file__).parent / "test_panels.py")
views = importlib.util.module_from_spec(spec)
spec.loader.exec_module(views)


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


@cache
def unturned(draw: figures.Draw) -> np.ndarray:
    """The phantom as it is drawn when its array is upright."""
    return pixels(figures.panel(draw, views.phantom_view(), 240))


def folded_pixels(file: bytes) -> np.ndarray:
    """(2, n) rows and columns, as shares of the picture."""
    picture = pixels(file)
    found = np.argwhere((picture == FOLDED).all(-1)).T
    return found / np.array(picture.shape[:2])[:, None]


def one_fold(shape=(200, 240), vertex=(30, 200)) -> PairView:
    """One vertex pushed past its right neighbour."""
    image = np.random.default_rng(0).random(shape)
    displacement = np.zeros((2, *shape))
    displacement[1][vertex] = 1.5
    return PairView("fold", image, image, image, displacement)


@pytest.mark.parametrize("display", DISPLAYS)
def test_every_orientation_gives_the_same_figures(display):
    view = views.phantom_view(display)
    for draw in (drawing.draw_mesh, drawing.draw_determinant, drawing.draw_cells):
        found = pixels(figures.panel(draw, view, 240))
        assert np.abs(found - unturned(draw)).max() <= 2


@pytest.mark.parametrize("display", DISPLAYS)
def test_the_mesh_bends_to_where_the_displacement_points(display):
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    drawing.draw_mesh(axes, views.phantom_view(display), lines=60)
    rows = np.array(axes.collections[0].get_segments()[:40])
    # Row 10, column 45 of the picture goes 6 to the right, to column 51, and nowhere up or down.
    np.testing.assert_allclose(rows[10, 45], (51, 10))
    np.testing.assert_allclose(rows[30, 5], (5, 30), atol=1e-6)


def test_the_mesh_lines_are_as_far_apart_along_both_axes():
    image = np.zeros((10, 40))
    view = PairView("a", image, image, image, np.zeros((2, 10, 40)), spacing=(4.0, 1.0))
    axes = Figure().add_axes((0, 0, 1, 1))
    drawing.draw_mesh(axes, view, lines=10)
    starts = np.array([strand[0] for strand in axes.collections[0].get_segments()])
    assert starts[:10, 1].tolist() == list(range(10))
    assert starts[10:, 0].tolist() == [*range(0, 40, 4), 39]


def test_the_mesh_keeps_the_proportions_of_the_voxels():
    image = np.zeros((10, 20))
    view = PairView("a", image, image, image, np.zeros((2, 10, 20)), spacing=(4.0, 1.0))
    assert pixels(figures.panel(drawing.draw_mesh, view, 200)).shape == (400, 200, 3)


@pytest.mark.parametrize(
    "draw",
    [drawing.draw_mesh, drawing.draw_determinant, drawing.draw_cells],
    ids=lambda d: d.__name__,
)
def test_folded_cells_are_marked_where_they_are(draw):
    rows, columns = folded_pixels(figures.panel(draw, one_fold()))
    assert rows.mean() == pytest.approx(30 / 200, abs=0.02)
    assert columns.mean() == pytest.approx(200 / 240, abs=0.02)


@pytest.mark.parametrize("draw", [drawing.draw_mesh, drawing.draw_determinant, drawing.draw_cells])
def test_nothing_is_marked_where_nothing_folds(draw):
    assert not folded_pixels(figures.panel(draw, views.phantom_view())).size


def test_the_determinant_map_is_pale_at_one_blue_below_and_amber_above():
    image = np.zeros((9, 9))
    i, _ = np.indices(image.shape)
    for scale, sign in ((0.5, 1), (1.0, 0), (2.0, -1)):
        u = np.stack([(scale - 1) * i, np.zeros_like(image)])
        picture = figures.panel(drawing.draw_determinant, PairView("a", image, image, image, u), 90)
        red, _, blue = pixels(picture)[45, 45]
        assert np.sign(np.where(abs(blue - red) < 12, 0, blue - red)) == sign


@pytest.mark.parametrize(("value", "limit"), [(1.0, 2), (0.4, 4), (5.0, 8), (1e-6, 8), (-1.0, 2)])
def test_the_limit_of_the_colours_is_a_power_of_two(value, limit):
    assert determinant_limit(np.full((3, 3), value)) == limit


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_displacement_that_is_not_finite_is_drawn_as_folded(value):
    view = views.phantom_view()
    view.displacement[0, 20, 30] = value
    assert folded_pixels(figures.panel(drawing.draw_determinant, view)).size
    for draw in (drawing.draw_mesh, drawing.draw_cells):
        figures.panel(draw, view)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 1), (2, 2)])
def test_the_smallest_images_are_drawn(shape):
    image = np.ones(shape)
    view = PairView("small", image, image, image, np.zeros((2, *shape)))
    figures.panel(drawing.draw_mesh, view)
    figures.panel(drawing.draw_determinant, view)
    figures.pair_figure(view)


def test_curves_are_drawn_with_gaps_one_point_and_nothing():
    steps = np.arange(500)
    noisy = {"training": (steps, 1 / (1 + steps)), "held out": ([0], [1.0]), "none": ([], [])}
    assert pixels(charts.curves_figure(noisy)).std() > 1
    charts.curves_figure({"gaps": (steps, np.where(steps % 7, steps, np.nan))})


def test_the_same_pair_gives_the_same_bytes():
    assert figures.pair_figure(one_fold()) == figures.pair_figure(one_fold())


def test_the_readme_picture_appears_whole(tmp_path):
    figures.readme_picture(tmp_path / "pair.png", views.phantom_view())
    assert [p.name for p in tmp_path.iterdir()] == ["pair.png"]
    height, width, _ = pixels((tmp_path / "pair.png").read_bytes()).shape
    assert width > 5 * height


def test_boxes_are_the_same_bytes_again_and_leave_out_nan():
    groups = {"all": {"before": [1.0, 2.0, np.nan], "after": [2.0]}, "none": {"after": [np.nan]}}
    first = boxes_figure(groups, "mm")
    assert first == boxes_figure(groups, "mm")
    assert first != boxes_figure({"all": groups["all"]}, "mm")


def every_picture():
    """Of each function that makes one, on its own."""
    small = views.phantom_view()
    volume = np.random.default_rng(0).random((6, 7, 8))
    still = PairView("volume", volume, volume, volume, np.zeros((3, 6, 7, 8)))
    return [
        figures.panel(drawing.draw_cells, small, 120),
        figures.pair_figure(small, 0.5),
        boxes_figure({"a b": {"before": [0.1, 0.3], "after": [0.2]}}),
        charts.curves_figure({"loss": ([1, 2], [3, 2])}),
        histogram_figure(np.ones((3, 3))),
        viewer._still(upright_volume(still)).encode(),
    ]


def test_a_style_of_the_callers_changes_no_picture_and_stays():
    usual = every_picture()
    style = {"text.usetex": True, "savefig.dpi": 7, "axes.facecolor": "black", "font.size": 20}
    with matplotlib.rc_context({**style, "savefig.bbox": "tight", "image.cmap": "jet"}):
        assert every_picture() == usual
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 20
