"""The viewer of a volume is used: by mouse, finger and keys, on wide and narrow screens."""

import time
from functools import partial

import numpy as np
import pytest
from chromium import VIEWS, defects, look
from phantoms import SHAPE, SPACING, rotation, stored_pair
from viewer_page import (
    ASKEW,
    FOLD,
    NAMES,
    PLANES,
    THROUGH,
    UPRIGHT,
    choose,
    colour,
    cursor,
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


def test_a_page_that_folds_opens_at_the_worst_cell_and_goes_back_there(browser, opened):
    cells = smallest_determinant(UPRIGHT.displacement)
    worst = list(np.unravel_index(cells.argmin(), cells.shape))
    opened("folded")
    assert cursor(browser) == worst
    assert element(browser, ".modes input:checked").get_attribute("value") == "determinant"
    assert "folded here" in element(browser, ".place").text
    ring = colour(FOLDED)

    def ringed() -> list[bool]:
        found = [pixels(browser, plane, "lines") for plane in PLANES]
        return [bool((np.abs(lines[..., :3] - ring).max(-1) < 3).any()) for lines in found]

    assert ringed() == [True] * 3
    go(browser, 0, 0, 0)
    assert ringed() == [False] * 3
    element(browser, "button.worst").click()
    assert cursor(browser) == worst
    assert f"{cells.min():.3g}".replace("-", "\N{MINUS SIGN}") in element(browser, ".worst").text


def test_what_does_not_fold_opens_as_an_overlay_after(browser, opened):
    opened("plain")
    assert element(browser, ".modes input:checked").get_attribute("value") == "overlay"
    assert element(browser, ".fader input").get_attribute("value") == "100"


def test_a_click_in_a_plane_moves_the_other_two(browser, opened):
    from selenium.webdriver import ActionChains

    opened("folded")
    go(browser, 0, 0, 3)
    canvas = element(browser, f"{figure('Axial')} .lines")
    wide, high = canvas.size["width"], canvas.size["height"]
    # The middle of voxel x = 6, y = 10, from the middle of the picture.
    right, down = (6.5 / SHAPE[0] - 0.5) * wide, (0.5 - 10.5 / SHAPE[1]) * high
    ActionChains(browser).move_to_element_with_offset(canvas, right, down).click().perform()
    assert cursor(browser) == [6, 10, 3]
    np.testing.assert_array_equal(pixels(browser, "Sagittal").shape[:2], (SHAPE[2], SHAPE[1]))
    place = element(browser, ".place").text
    assert place.split(" \u00b7 ")[1].startswith("voxel ")
    drag = ActionChains(browser).move_to_element_with_offset(canvas, right, down).click_and_hold()
    drag.move_by_offset(-4 * wide / SHAPE[0], 3 * high / SHAPE[1]).release().perform()
    assert cursor(browser) == [2, 7, 3]
    ActionChains(browser).move_to_element_with_offset(canvas, 0, 0).perform()  # no button is down
    assert cursor(browser) == [2, 7, 3]


def test_the_place_is_said_in_voxels_of_the_file_and_in_mm(browser, opened):
    opened("folded")
    go(browser, 3, 7, 4)
    pair = stored_pair(*ASKEW, fold=FOLD)
    candidates = np.argwhere(pair.fixed == UPRIGHT.fixed[3, 7, 4]).tolist()
    drawn(browser)
    mm, said, *_ = element(browser, ".place").text.split(" \u00b7 ")
    voxel = [int(i) for i in said.removeprefix("voxel ").split(", ")]
    assert voxel in candidates
    expected = pair.affine @ (*voxel, 1)
    found = [
        float(part.split()[1]) * (1 if part[0] in "RAS" else -1) for part in mm[:-3].split(", ")
    ]
    np.testing.assert_allclose(found, expected[:3], atol=0.051)
    np.testing.assert_allclose(
        expected[:3], (10, -20, 30) + (rotation(20) * SPACING) @ (3, 7, 4), atol=1e-9
    )


def touch(browser, kind: str, *point: float) -> None:
    points = [{"x": point[0], "y": point[1]}] if point else []
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_a_finger_taps_and_drags_sideways(browser, opened):
    opened("folded")
    go(browser, 0, 0, 3)
    box = browser.execute_script(
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height]",
        f"{figure('Axial')} .lines",
    )

    def at(x: float, y: float) -> tuple[float, float]:
        left, top, wide, high = box
        return left + (x + 0.5) / SHAPE[0] * wide, top + (SHAPE[1] - 0.5 - y) / SHAPE[1] * high

    touch(browser, "touchStart", *at(6, 10))
    touch(browser, "touchEnd")
    assert cursor(browser) == [6, 10, 3]
    touch(browser, "touchStart", *at(1, 5))
    for x in (2, 3, 4, 5):
        touch(browser, "touchMove", *at(x, 5))
    touch(browser, "touchEnd")
    assert cursor(browser) == [5, 5, 3]


@pytest.mark.parametrize("plane", PLANES)
def test_keys_move_the_slice_of_the_plane_that_has_the_focus(browser, opened, plane):
    from selenium.webdriver import Keys

    opened("plain")
    go(browser, 3, 5, 2)
    axis = THROUGH[plane]
    canvas = element(browser, f"{figure(plane)} .lines")
    canvas.send_keys(Keys.ARROW_UP * 2 + Keys.ARROW_DOWN)
    expected = [3, 5, 2]
    expected[axis] += 1
    assert cursor(browser) == expected
    assert canvas.get_attribute("aria-valuenow") == str(expected[axis] + 1)
    for key, index in (
        (Keys.END, SHAPE[axis] - 1),
        (Keys.ARROW_RIGHT, SHAPE[axis] - 1),
        (Keys.HOME, 0),
    ):
        canvas.send_keys(key)
        expected[axis] = index
        assert cursor(browser) == expected
    assert f"slice 1 of {SHAPE[axis]}" in element(browser, f"{figure(plane)} output").text


def test_everything_is_reached_by_tab_and_shows_its_focus(browser, opened):
    from selenium.webdriver import ActionChains, Keys

    opened("plain")
    browser.execute_script("document.querySelector('.modes input:checked').focus()")
    seen = []
    for _ in range(10):
        seen.append(
            browser.execute_script(
                "const e = document.activeElement;"
                "const shows = [e, e.nextElementSibling, e.parentElement].some((n) =>"
                "  n && getComputedStyle(n).outlineStyle === 'solid');"
                "return [e.className || e.value || e.type, shows]"
            )
        )
        ActionChains(browser).send_keys(Keys.TAB).perform()
    assert all(shows for _, shows in seen)
    names = [name for name, _ in seen]
    assert names[:5] == ["overlay", "100", "labels", "mask", "worst"]
    assert names[5::2] == ["lines"] * 3 or names[5] == names[7] == names[9] == "lines"


def test_labels_of_moving_are_those_before_or_after(browser, opened):
    opened("plain")
    go(browser, 6, 5, 3)
    for percent, words in ((100, "fixed label 31 \u00b7 warped label 31"), (0, "moving label 32")):
        fade(browser, percent)
        drawn(browser)
        assert element(browser, ".place").text.endswith(words)


def test_the_fader_is_off_where_it_changes_nothing(browser, opened):
    opened("plain")
    for mode, off in (("fixed", True), ("overlay", False), ("determinant", True)):
        choose(browser, mode)
        assert (element(browser, ".fader input").get_attribute("disabled") == "true") is off


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_and_nothing_sticks_out(browser, pages, name, view):
    assert defects(browser, pages / f"{name}.html", view) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_error_is_logged_and_nothing_is_fetched(browser, pages, name):
    browser.get_log("browser")
    look(browser, pages / f"{name}.html", "1000")
    time.sleep(0.3)
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "DEBUG"] == []
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map((e) => e.name)"
    )
    assert [address for address in fetched if not address.startswith("data:")] == []


def test_without_a_script_a_still_picture_is_seen(browser, pages, tmp_path):
    text = (pages / "plain.html").read_text()
    start = text.rindex("<script>")
    (tmp_path / "still.html").write_text(text[:start] + text[text.index("</script>", start) + 9 :])
    look(browser, tmp_path / "still.html", "1000")
    still = element(browser, ".still img")
    assert still.is_displayed() and still.size["width"] > 800
    assert not element(browser, ".planes").is_displayed()
    assert not element(browser, ".modes").is_displayed()
