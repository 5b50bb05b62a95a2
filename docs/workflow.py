"""Draws docs/workflow.svg: images -> network -> displacement -> warp, the loss, and what follows.

    python docs/workflow.py

The pictures are of a shipped pair of heads; its field comes from `register_variational`, which
minimises the same loss without a network. Positions are inches from the figure's lower left.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from PIL import Image

import diffreg
from diffreg.data.geometry import display_orientation
from diffreg.data.images import read_image
from diffreg.data.normalization import normalize
from diffreg.fields import fold_certificate
from diffreg.ops import warp
from diffreg.registration import register_variational
from diffreg.report.drawing import draw_determinant
from diffreg.report.figures import empty_figure, panel
from diffreg.report.panels import PairView, grey, upright_points, window

SIZE = (9.0, 5.1)
SLICE = 8
WIDTH, HEIGHT = 0.96, 1.12  # of a picture
INK, PALE, FOLD = "#14181f", "#5b6470", "#c2185b"
PREDICTION, TRAINING, AFTERWARDS = "#0b6e63", "#b8500f", "#4b3f9e"
SETTINGS = {
    "svg.hashsalt": "diffreg",
    "svg.fonttype": "path",
    "image.composite_image": False,
    "mathtext.fontset": "stix",
    "font.family": "DejaVu Sans",
}


def registered() -> PairView:
    """Colin27 (moving) on the MNI152 template (fixed), one slice of each."""
    heads = Path(diffreg.__file__).parent / "demo" / "heads"
    moving, fixed = (
        read_image(heads / f"{name}.nii.gz", SLICE) for name in ("colin27_t1", "mni152_t1")
    )
    images = normalize(moving.data), normalize(fixed.data)
    torch.set_num_threads(1)  # the same file, whatever OMP_NUM_THREADS says
    displacement = register_variational(*images).round(decimals=2)
    verdict = fold_certificate(displacement).verdict
    if verdict != "homeomorphism":
        raise RuntimeError(f"the drawing says that this field passes, but it is {verdict}")
    still, bent = images[1][0, 0].numpy(), warp(images[0], displacement)[0, 0].numpy()
    return PairView(
        "heads",
        images[0][0, 0].numpy(),
        still,
        bent,
        displacement[0].numpy(),
        spacing=fixed.spacing,
        display=display_orientation(fixed.affine, fixed.kind),
    )


class Drawing:
    """The figure: one pair of axes in inches, and what is put on it."""

    def __init__(self) -> None:
        self.figure = empty_figure(*SIZE)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
        self.axes.set_axis_off()
        self.axes.autoscale(False)

    def text(self, x: float, y: float, words: str, size: float = 8.5, **more: Any) -> None:
        style = {"ha": "center", "va": "center", "color": INK, "linespacing": 1.25, **more}
        self.axes.text(x, y, words, fontsize=size, zorder=5, **style)

    def box(self, x: float, y: float, w: float, h: float, colour: str, **more: Any) -> None:
        """A rounded box with its lower left corner at (x, y)."""
        style = {"facecolor": "white", "linewidth": 1.3, "zorder": 2, **more}
        shape = "round,pad=0,rounding_size=0.07"
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, shape, edgecolor=colour, **style))

    def picture(self, x: float, y: float, rgb: np.ndarray, colour: str = INK) -> Any:
        """A raster at its place, in a thin frame; returns the frame."""
        place = (x, x + WIDTH, y, y + HEIGHT)
        self.axes.imshow(rgb, extent=place, interpolation="none", aspect="auto", zorder=3)
        frame = Rectangle((x, y), WIDTH, HEIGHT, fill=False, edgecolor=colour, lw=1, zorder=4)
        return self.axes.add_patch(frame)

    def arrow(self, points: list[tuple[float, float]], colour: str, dashed: bool = False) -> None:
        """Straight pieces from point to point, a head on the last one."""
        style = {"color": colour, "linewidth": 1.5, "linestyle": (0, (3, 1.6)) if dashed else "-"}
        if len(points) > 2:
            self.axes.plot(*zip(*points[:-1], strict=True), solid_joinstyle="round", **style)
        self.axes.add_patch(
            FancyArrowPatch(
                *points[-2:],
                arrowstyle="-|>,head_length=4.5,head_width=2.3",
                mutation_scale=1,
                shrinkA=0,
                shrinkB=0,
                joinstyle="miter",
                zorder=4,
                **style,
            )
        )


def enlarged(rgb: np.ndarray, times: int = 2) -> np.ndarray:
    picture = Image.fromarray(rgb)
    size = picture.width * times, picture.height * times
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def draw_inputs(d: Drawing, view: PairView) -> None:
    moving = enlarged(grey(view.moving, window(view.moving), view.display))
    fixed = enlarged(grey(view.fixed, window(view.fixed), view.display))
    d.picture(0.25, 3.40, moving)
    d.text(0.25 + WIDTH / 2, 4.64, "moving image $T$")
    d.picture(0.25, 1.86, fixed)
    d.text(0.25 + WIDTH / 2, 3.10, "fixed image $R$")


def draw_network(d: Drawing) -> None:
    """A box with a U of feature maps in it, both images going in."""
    d.box(1.68, 2.64, 1.22, 1.40, PREDICTION, facecolor="#eef6f4")
    for k in range(7):
        depth = 3 - abs(k - 3)
        x, y, height = 1.85 + 0.135 * k, 3.74 - 0.11 * depth, (0.36, 0.24, 0.15, 0.09)[depth]
        bar = Rectangle((x, y - height / 2), 0.07, height, facecolor=PREDICTION, zorder=3)
        d.axes.add_patch(bar)
        if k < 3:  # what skips the levels below
            skip = (x + 0.07, x + 0.135 * (6 - 2 * k)), (y, y)
            d.axes.plot(*skip, color=PREDICTION, linewidth=0.7, zorder=3)
    d.text(2.29, 3.13, "network", weight="bold", color=PREDICTION)
    d.text(2.29, 2.95, "LU-net or SN", 8)
    d.text(2.29, 2.77, r"$u = N_\theta(T, R)$", 9)
    d.arrow([(0.25 + WIDTH, 3.72), (1.68, 3.72)], PREDICTION)
    d.arrow([(0.25 + WIDTH, 2.86), (1.68, 2.86)], PREDICTION)


def draw_mesh(d: Drawing, view: PairView, x: float, y: float) -> None:
    """The fixed grid where phi takes it: every sixth line, cut at the picture's frame."""
    frame = d.picture(x, y, np.full((2, 2, 3), 255, np.uint8))
    points = np.indices(view.fixed.shape) + view.displacement
    rows, columns = upright_points(points, view.fixed.shape, view.display)
    size = view.fixed.shape[::-1] if view.display[0] else view.fixed.shape
    right = x + (columns + 0.5) / size[1] * WIDTH
    up = y + HEIGHT - (rows + 0.5) / size[0] * HEIGHT
    lines = [(right[i, ::3], up[i, ::3]) for i in range(2, len(right), 6)]
    lines += [(right[::3, j], up[::3, j]) for j in range(2, right.shape[1], 6)]
    for line in lines:
        (strand,) = d.axes.plot(*line, color=PREDICTION, linewidth=0.6, zorder=3.5)
        strand.set_clip_path(frame)


def draw_prediction(d: Drawing, view: PairView) -> None:
    d.box(3.22, 2.50, 3.42, 1.72, PREDICTION, facecolor="#f6faf9", linewidth=0.8)
    draw_mesh(d, view, 3.38, 2.72)
    d.text(3.38 + WIDTH / 2, 4.03, r"$\varphi = \mathrm{id} + u$", 9)
    d.text(3.38 + WIDTH / 2, 2.61, "displacement $u$", 8)
    circle = Circle((4.90, 3.28), 0.27, facecolor="white", edgecolor=PREDICTION, lw=1.3, zorder=3)
    d.axes.add_patch(circle)
    d.text(4.90, 3.28, "warp", weight="bold", color=PREDICTION)
    bent = enlarged(grey(view.warped, window(view.moving), view.display))
    d.picture(5.50, 2.72, bent)
    d.text(5.50 + WIDTH / 2, 4.03, r"$T \circ \varphi$", 9)
    d.text(5.50 + WIDTH / 2, 2.61, "warped image", 8)
    d.arrow([(2.90, 3.28), (3.38, 3.28)], PREDICTION)
    d.arrow([(3.38 + WIDTH, 3.28), (4.63, 3.28)], PREDICTION)
    d.arrow([(5.17, 3.28), (5.50, 3.28)], PREDICTION)
    d.arrow([(0.25 + WIDTH, 4.40), (4.90, 4.40), (4.90, 3.55)], PREDICTION)
    d.text(0.25, 4.93, "prediction: one pass", 9.5, weight="bold", color=PREDICTION, ha="left")


def draw_first_order(d: Drawing, x: float, y: float) -> None:
    """A square, and the same sheared: what first derivatives see."""
    d.axes.add_patch(Polygon(_square(x, y), fill=False, ec="#b9bfc7", lw=0.8, zorder=3))
    sheared = [(px + 0.45 * (py - y), py) for px, py in _square(x, y)]
    d.axes.add_patch(Polygon(sheared, fill=False, ec=TRAINING, lw=1.3, zorder=3))


def draw_second_order(d: Drawing, x: float, y: float) -> None:
    """A square, and the same bent: what second derivatives see."""
    d.axes.add_patch(Polygon(_square(x, y), fill=False, ec="#b9bfc7", lw=0.8, zorder=3))
    t = np.linspace(-0.13, 0.13, 15)
    bow = 5 * (t**2 - 0.13**2) + 0.04
    edge = np.concatenate([np.stack([t, bow + 0.13], 1), np.stack([t, bow - 0.13], 1)[::-1]])
    d.axes.add_patch(Polygon(edge + np.array((x, y)), fill=False, ec=TRAINING, lw=1.3, zorder=3))


def draw_fold(d: Drawing, x: float, y: float) -> None:
    """A square, and one with a corner pushed across: the determinant is below 0 there."""
    d.axes.add_patch(Polygon(_square(x, y), fill=False, ec="#b9bfc7", lw=0.8, zorder=3))
    corners = _square(x, y)
    corners[2] = (x - 0.09, y - 0.19)
    d.axes.add_patch(Polygon(corners, fill=False, ec=FOLD, lw=1.3, zorder=3))
    d.axes.add_patch(Circle(corners[2], 0.035, facecolor=FOLD, lw=0, zorder=4))


def _square(x: float, y: float, half: float = 0.13) -> list[tuple[float, float]]:
    return [(x + a * half, y + b * half) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def draw_training(d: Drawing) -> None:
    d.box(1.36, 0.58, 5.28, 1.42, TRAINING, facecolor="#fdf6f0", linewidth=0.8)
    d.text(1.52, 0.72, "training: no ground truth", 9.5, weight="bold", color=TRAINING, ha="left")
    d.box(1.52, 0.94, 0.62, 0.74, TRAINING)
    d.text(1.83, 1.42, "loss", weight="bold", color=TRAINING)
    d.text(1.83, 1.16, r"$L(\theta)$", 10)
    energies = (
        ("a_1", "E_1", "first-order\nsmoothness", draw_first_order),
        ("a_2", "E_2", "second-order\nsmoothness", draw_second_order),
        ("a_3", r"E_\mathrm{det}", "determinant:\nno folds", draw_fold),
    )
    for k, (weight, energy, words, draw) in enumerate(energies):
        x = 2.37 + 1.06 * k
        d.box(x, 0.88, 0.86, 0.86, TRAINING)
        draw(d, x + 0.24, 1.50)
        d.text(x + 0.60, 1.50, f"${weight} {energy}$", 9.5)
        d.text(x + 0.43, 1.10, words, 7.5)
    d.box(5.55, 0.88, 0.86, 0.86, TRAINING)
    d.text(5.98, 1.50, r"$\lambda\, S(T \circ \varphi, R)$", 8.5)
    d.text(5.98, 1.10, "similarity to\nfixed image", 7.5)
    for x, sign in ((2.255, "="), (3.33, "+"), (4.39, "+"), (5.45, "+")):
        d.text(x, 1.32, sign, 10)


def draw_training_arrows(d: Drawing) -> None:
    x = 3.38 + WIDTH / 2
    for target in (2.80, x, 4.92):
        d.arrow([(x, 2.50), (x, 2.18), (target, 2.18), (target, 1.74)], TRAINING)
    d.arrow([(5.98, 2.50), (5.98, 1.74)], TRAINING)
    d.arrow([(0.73, 1.86), (0.73, 0.40), (5.98, 0.40), (5.98, 0.88)], TRAINING)
    d.arrow([(1.83, 1.68), (1.83, 2.64)], TRAINING, dashed=True)
    d.text(1.91, 2.30, r"gradient $\partial L / \partial \theta$", 8, color=TRAINING, ha="left")


def draw_afterwards(d: Drawing, view: PairView) -> None:
    left, middle, width = 7.06, 7.905, 1.69
    d.text(left, 4.93, "after prediction", 9.5, weight="bold", color=AFTERWARDS, ha="left")
    d.arrow([(6.64, 3.28), (left, 3.28)], AFTERWARDS)
    d.box(left, 2.50, width, 2.12, AFTERWARDS, facecolor="#f5f4fb")
    d.text(middle, 4.46, "fold certificate", weight="bold", color=AFTERWARDS)
    determinants = np.asarray(Image.open(io.BytesIO(panel(draw_determinant, view, 192))))
    d.picture(middle - WIDTH / 2, 3.22, determinants)
    d.text(middle, 3.10, "blue below 1, brown above", 7, color=PALE)
    d.text(middle, 2.76, r"$\det \nabla\varphi > 0$ at every" + "\ncorner of every cell?", 8)
    d.box(7.72, 1.52, 1.03, 0.62, AFTERWARDS)
    d.text(8.235, 1.97, "repair", weight="bold", color=AFTERWARDS)
    d.text(8.235, 1.72, "nearest field\nthat passes", 7.5)
    d.box(left, 0.30, width, 0.88, AFTERWARDS, facecolor="#f5f4fb")
    d.text(middle, 1.03, "files", weight="bold", color=AFTERWARDS)
    d.text(
        middle, 0.63, "displacement, warped image\n(NIfTI for ITK and ANTs),\nmetrics, report", 7.5
    )
    d.arrow([(7.39, 2.50), (7.39, 1.18)], AFTERWARDS)
    d.arrow([(8.235, 2.50), (8.235, 2.14)], AFTERWARDS)
    d.arrow([(8.235, 1.52), (8.235, 1.18)], AFTERWARDS)
    d.text(7.34, 2.33, "yes", 8, ha="right", color=AFTERWARDS)
    d.text(8.29, 2.33, "no", 8, ha="left", color=AFTERWARDS)
    source = (
        "Pictures: Colin27 and MNI152; the field is the variational method's, of the same loss."
    )
    d.text(0.25, 0.13, source, 7, color=PALE, ha="left")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    with matplotlib.rc_context(SETTINGS):
        view, drawing = registered(), Drawing()
        draw_inputs(drawing, view)
        draw_network(drawing)
        draw_prediction(drawing, view)
        draw_training(drawing)
        draw_training_arrows(drawing)
        draw_afterwards(drawing, view)
        path = Path(__file__).with_suffix(".svg")
        about = {"Date": None, "Creator": None, "Title": "How diffreg registers and learns"}
        drawing.figure.savefig(path, format="svg", metadata=about)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
