"""Pages with a viewer in a browser: what they show, and how they are used."""

import time

import numpy as np
from chromium import look
from phantoms import SHAPE, SPACING, STORAGES, rotation, stored_pair

from diffreg.report.html import PairView, write_report
from diffreg.report.rows import pair_row

PLANES = ("Axial", "Coronal", "Sagittal")
THROUGH = {"Axial": 2, "Coronal": 1, "Sagittal": 0}
FOLD = (6, 8, 2)
UPRIGHT = stored_pair(fold=FOLD)
LABELS = np.zeros(SHAPE, int)
LABELS[5:8, 3:7, 1:6] = 31
LAYERS = np.rint(np.linspace(0, 99, 48)).astype(int)
ASKEW = (*STORAGES[29], rotation(20))  # turned, mirrored and tilted
NAMES = ("folded", "plain", "several", "long")


def write_pages(folder) -> None:
    """One that folds, stored askew; one that does not, with labels and mask; several pairs."""
    folded = stored_pair(*ASKEW, fold=FOLD)
    bump = np.zeros((3, *SHAPE))
    bump[0] = np.linspace(0, 2, SHAPE[1])[None, :, None]  # more to the right towards the front
    smooth = {n: getattr(UPRIGHT, n) for n in ("moving", "fixed", "warped")}
    smooth |= {"fixed_labels": LABELS, "warped_labels": np.roll(LABELS, 1, 0), "mask": LABELS > -1}
    smooth["moving_labels"] = LABELS + 1
    plain = PairView("plain", displacement=bump, spacing=SPACING, affine=np.eye(4), **smooth)
    verdict = [("how much the images agree (NCC)", (0.5, 0.75)), ("time", "4.6 s")]
    origin = {"date": "2026-07-31", "command": "diffreg register " + "long/" * 30}
    drawings = ([folded], [plain], [pair_row(folded)] * 3, [layered()])
    for name, pairs in zip(NAMES, drawings, strict=True):
        write_report(folder / f"{name}.html", name, verdict, pairs, origin=origin, notes=["Note."])


def layered() -> PairView:
    """Long enough for a mesh with nodes in few layers x; every second one moves 2 to the front."""
    images = [np.zeros((100, 6, 5))] * 3
    u = np.zeros((3, 100, 6, 5))
    u[1, LAYERS[1::2]] = 2
    return PairView("layers", *images, u, affine=np.eye(4))


def open_page(browser, folder, name: str, view: str = "1400") -> None:
    """Until its volumes are there."""
    look(browser, folder / f"{name}.html", view)
    wait_for(browser, "return document.querySelector('.place')?.textContent.length > 0")


def wait_for(browser, script: str) -> None:
    until = time.monotonic() + 10
    while not browser.execute_script(script):
        assert time.monotonic() < until, script
        time.sleep(0.02)


def element(browser, selector: str):
    return browser.find_element("css selector", selector)


def figure(plane: str) -> str:
    return f".plane:nth-child({PLANES.index(plane) + 1})"


def drawn(browser) -> None:
    """Two frames: what was asked for is on the canvases."""
    browser.execute_async_script(
        "const done = arguments[0];requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    )


def choose(browser, mode: str) -> None:
    browser.execute_script(f"document.querySelector('.modes [value={mode}]').click()")


def fade(browser, percent: int) -> None:
    browser.execute_script(
        "const input = document.querySelector('.fader input'); input.value = arguments[0];"
        "input.dispatchEvent(new Event('input'))",
        percent,
    )


def pixels(browser, plane: str, layer: str = "slice") -> np.ndarray:
    """(rows, columns, 4) of a canvas."""
    drawn(browser)
    width, height, data = browser.execute_script(
        "const c = document.querySelector(arguments[0]); return [c.width, c.height,"
        "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]",
        f"{figure(plane)} .{layer}",
    )
    return np.array(data).reshape(height, width, 4)


def cursor(browser) -> list[int]:
    """x, y, z, as the sliders say."""
    drawn(browser)
    script = "return [...document.querySelectorAll('.plane input')].map((i) => Number(i.value))"
    axial, coronal, sagittal = browser.execute_script(script)
    return [sagittal, coronal, axial]


def go(browser, x: int, y: int, z: int) -> None:
    browser.execute_script(
        "[...document.querySelectorAll('.plane input')].forEach((input, k) => {"
        "input.value = arguments[0][k]; input.dispatchEvent(new Event('input')); })",
        [z, y, x],
    )


def colour(text: str) -> list[int]:
    """Red, green, blue of #rrggbb."""
    return [int(text[k : k + 2], 16) for k in (1, 3, 5)]
