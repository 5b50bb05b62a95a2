"""The viewer of a registered volume: three planes through one point, composed in the browser.

The page has moving, fixed and warped image with 8 bits a voxel, the determinant, outlines and a
coarse displacement; the scripts in browser/ make overlay, checkerboard, difference and mesh of
them. Without scripts a still picture is seen.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.report.charts import data_url
from diffreg.report.determinants import DETERMINANTS, FOLDED, determinant_limit
from diffreg.report.drawing import LINE
from diffreg.report.elements import GREEN, MAGENTA, alternative, key_html
from diffreg.report.figures import usual_look, volume_figure
from diffreg.report.panels import OUTLINED, PairView, jpeg
from diffreg.report.payload import payload
from diffreg.report.table import shown
from diffreg.report.volumes import Plane, Upright, planes_of, tilt_of, worst_cell

BROWSER = Path(__file__).parent / "browser"
MOST_BYTES = 5_700_000  # of the volumes in a page, which stays below 6 MB with all else
FEW_LABELS = 20  # outlines of more are drawn only when asked for: they hide the images
TALLEST = 460  # pixels of the tallest plane
FIXED_OUTLINE, MOVING_OUTLINE, MASK_OUTLINE = "#5dff8f", "#ff8cff", "#ffd140"

COLOURS = {
    "folded": FOLDED,
    "mesh": LINE,
    "fixedOutline": FIXED_OUTLINE,
    "movingOutline": MOVING_OUTLINE,
    "mask": MASK_OUTLINE,
}
# What can be shown, and whether the slider from before to after matters to it.
MODES = {
    "Overlay": True,
    "Image": True,
    "Fixed": False,
    "Checkerboard": True,
    "Difference": True,
    "Mesh": True,
    "Determinant": False,
}


def viewer_style() -> str:
    """The style of the viewer, for the page."""
    return (BROWSER / "viewer.css").read_text(encoding="utf-8")


def viewer_script() -> str:
    """The scripts of the viewer, for the page."""
    names = ("volumes", "plane", "viewer")
    return "\n".join((BROWSER / f"{name}.js").read_text(encoding="utf-8") for name in names)


def viewer(volume: Upright, most_bytes: int = MOST_BYTES) -> str:
    """The viewer of one pair, as HTML.

    Args:
        volume: the pair (`upright_volume`).
        most_bytes: of the volumes in the page; where they need more they are drawn coarser, which
            the page says.

    Example: `viewer(upright_volume(view))`
    """
    data = payload(volume, most_bytes) | {"colours": COLOURS}
    folds = bool(data["folded"])
    planes = "".join(
        _plane(volume.pair, plane, data["shape"][plane.through]) for plane in planes_of(volume.pair)
    )
    words = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<section class="viewer" id="pairs" aria-label="The registered volumes">'
        f'<div class="controls">{_modes("Determinant" if folds else "Overlay")}{_fader()}</div>'
        f"{_more(volume, data['labels'])}"
        f'<div class="planes">{planes}</div>'
        f'<p class="place" role="status"></p>{_legends(volume)}'
        f'<p class="hint">{_orientation(volume.pair)} {_resolution(data)}</p>'
        f"{_still(volume)}"
        f'<script type="application/json">{words}</script></section>'
    )


def _modes(first: str) -> str:
    """One button for each thing that can be shown."""
    buttons = "".join(
        f'<label><input type="radio" name="mode" value="{name.lower()}" '
        f'data-fades="{"yes" if fades else "no"}"{" checked" if name == first else ""}>'
        f"<span>{name}</span></label>"
        for name, fades in MODES.items()
    )
    return f'<div class="modes" role="radiogroup" aria-label="What is shown">{buttons}</div>'


def _fader() -> str:
    return (
        '<label class="fader"><span>Before</span><input type="range" min="0" max="100" '
        'value="100" aria-label="From the moving image before to after registration">'
        "<span>After</span></label>"
    )


def _more(volume: Upright, labels: list[int] | None) -> str:
    """Outlines, where there are any, and the way to the worst cell."""
    pair, worst = volume.pair, worst_cell(volume.cells)
    boxes = ""
    if any(getattr(pair, name) is not None for name in OUTLINED if name != "mask"):
        few = labels is not None and len(labels) <= FEW_LABELS
        keys = f"{key_html(FIXED_OUTLINE, 'fixed')} {key_html(MOVING_OUTLINE, 'moving')}"
        boxes += _checkbox("labels", f"Outlines of labels {keys}", few)
    if pair.mask is not None:
        boxes += _checkbox("mask", key_html(MASK_OUTLINE, "outline of the mask"), True)
    button = ""
    if worst is not None:
        words = f"Go to the smallest determinant, {shown(float(volume.cells[worst]))}"
        button = f'<button type="button" class="worst">{escape(words)}</button>'
    return f'<div class="shown">{boxes}{button}</div>'


def _checkbox(name: str, words: str, checked: bool) -> str:
    state = " checked" if checked else ""
    return f'<label><input type="checkbox" value="{name}"{state}><span>{words}</span></label>'


def _plane(pair: PairView, plane: Plane, count: int) -> str:
    """The canvases of a plane, its letters, its slider over `count` slices."""
    wide, high = (pair.fixed.shape[k] * pair.spacing[k] for k in (plane.across, plane.up))
    name = escape(plane.name)
    letters = "".join(
        f'<span class="{side}" aria-hidden="true">{letter}</span>'
        for side, letter in zip(("left", "right", "top", "bottom"), plane.letters, strict=False)
    )
    tallest = TALLEST * wide / high
    frame = f"aspect-ratio: {wide:.6g} / {high:.6g}; width: min(100%, {tallest:.0f}px)"
    return (
        f'<figure class="plane" style="flex: {wide:.6g} 1 0" '
        f'data-axes="{plane.across} {plane.up} {plane.through}">'
        f'<div class="frame" style="{frame}"><canvas class="slice"></canvas>'
        f'<canvas class="lines" tabindex="0" role="slider" aria-label="{name}: arrow keys change '
        f'the slice" aria-valuemin="1" aria-valuemax="{count}" aria-valuenow="1"></canvas>'
        f"{letters}</div><figcaption><b>{name}</b> <output></output></figcaption>"
        f'<input type="range" min="0" max="{count - 1}" aria-label="{name} slice"></figure>'
    )


def _legends(volume: Upright) -> str:
    """What the colours of each mode mean; one of them is seen."""
    grey = key_html("#fff", "bright where the image is, within its window")
    ramp = f"background: linear-gradient(90deg, {', '.join(DETERMINANTS)})"
    limit = f"{determinant_limit(volume.cells):.0f}"
    count = int((~(volume.cells > 0)).sum())
    text = f"folded: {count:,} of {volume.cells.size:,} cells"
    bar = (
        f'<span class="ends"><span>&le;&nbsp;1/{limit} shrinks</span><span>1</span>'
        f'<span>grows &ge;&nbsp;{limit}</span></span><span class="scale" style="{ramp}"></span>'
    )
    both = f"{key_html(GREEN, 'fixed')} {key_html(MAGENTA, 'moving')}"
    words = {
        "overlay": f"{both} grey where they agree",
        "image": f"The moving image before and after. {grey}",
        "fixed": f"The fixed image. {grey}",
        "checkerboard": "Squares of the fixed and of the moving image in turn: edges should run on",
        "difference": f"{key_html('#fff', 'moving is brighter')} {key_html('#808080', 'alike')} "
        f"{key_html('#000', 'fixed is brighter')}",
        "mesh": f"{key_html(LINE, 'the fixed grid')} where the registration takes it, over "
        "the moving image; seen is the part of the displacement that lies in the plane",
        "determinant": f'<span class="bar">{bar}</span>'
        + (key_html(FOLDED, text) if count else ""),
    }
    return "".join(
        f'<p class="legend" data-mode="{mode}" hidden>{text}</p>' for mode, text in words.items()
    )


def _orientation(pair: PairView) -> str:
    """Which way the planes are turned."""
    if pair.affine is None:
        return "The volumes have no place in space: planes are drawn as they are stored."
    tilt = tilt_of(pair.affine)
    turned = f", tilted by up to {tilt:.0f} degrees to the patient's axes" if tilt >= 1 else ""
    return (
        "The patient's left is on the left (L left, R right, A front, P back, S head, I feet); "
        f"planes run along the voxels{turned}."
    )


def _resolution(data: dict[str, Any]) -> str:
    """Whether the page has fewer voxels than the images."""
    if tuple(data["shape"]) == tuple(data["full"]):
        return ""
    drawn, full = (" x ".join(map(str, data[name])) for name in ("shape", "full"))
    drawn, full = (text.replace("x", "\N{MULTIPLICATION SIGN}") for text in (drawn, full))
    return (
        f"Drawn with {drawn} of {full} voxels: means of the images, of the determinant the "
        "smallest; the numbers are those of all voxels."
    )


@usual_look()
def _still(volume: Upright) -> str:
    """The picture that is seen without scripts, and in print."""
    figure = volume_figure(volume, 2.1)
    figure.set_dpi(110)
    figure.canvas.draw()
    picture = jpeg(np.asarray(figure.canvas.buffer_rgba())[..., :3], 2000)
    text = alternative("Moving, fixed, warped, overlays and mesh in three planes", volume.pair)
    return (
        f'<figure class="still"><img src="{data_url(picture)}" alt="{text}"><figcaption>Three '
        f"planes: moving, fixed, warped, overlays before and after ({key_html(GREEN, 'fixed')}, "
        f"{key_html(MAGENTA, 'moving')}), mesh coloured by the determinant.</figcaption></figure>"
    )
