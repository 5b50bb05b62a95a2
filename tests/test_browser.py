"""The pages in a browser: nothing overlaps or sticks out, the slider moves, no error is logged."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from chromium import VIEWS, defects, look

from diffreg.cli.main import main
from diffreg.demo.measures import HELD_OUT, METHODS, Case, targets
from diffreg.demo.report import Result, case_view, write_demo_report
from diffreg.report.first_screen import fit_sentence
from diffreg.report.html import PairView, write_report
from diffreg.training.config import TrainingConfig

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # selenium's own, of its use of the standard library
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PAGES = ("pair", "warned", "cohort", "evaluation", "demo")
# As long as commands are where files lie deep.
COMMAND = f"diffreg register /{'data/' * 30}moving.nii.gz {'fixed' * 30}.nii.gz -o out"


def body(at: float) -> np.ndarray:
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in (40, 36)), indexing="ij")
    inside = np.exp(-(((x - at) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2))
    return (200 * inside + 40 * np.sin(5 * x + 3 * y)).astype(np.float32)


def save(path: Path, array: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A folder with a page of each kind, at pages / kind / report.html."""
    folder = tmp_path_factory.mktemp("pages")
    lines = ["moving,fixed,moving_label,fixed_label,group"]
    for k in range(6):
        files = []
        for name, at in (("a-moving-image", 0.5 + 0.02 * (k % 3 + 1)), ("a-fixed-image", 0.5)):
            save(folder / f"{name}_{k}.nii.gz", body(at))
            save(folder / f"{name}_{k}_label.nii.gz", (body(at) > 100).astype(np.uint8))
            files.append(f"{name}_{k}")
        names = [f"{name}{end}.nii.gz" for end in ("", "_label") for name in files]
        lines.append(",".join([*names, f"patient {k // 2}"]))
    (folder / "bad.nii.gz").write_bytes(b"no image")  # a pair that fails has its warning
    lines.append("bad.nii.gz,bad.nii.gz,,,patient 3")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    pair = [str(folder / f"{name}_0.nii.gz") for name in ("a-moving-image", "a-fixed-image")]
    manifest = str(folder / "pairs.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", COMMAND.split())
        assert main(["register", *pair, "-o", str(folder / "pair"), "--guarantee"]) == 0
        assert main(["register", manifest, "-o", str(folder / "cohort")]) == 2
        assert main(["evaluate", manifest, "-o", str(folder / "evaluation")]) == 2
    demo_page(folder / "demo")
    warned_page(folder / "warned")
    return folder


def demo_page(out: Path) -> None:
    """The demo's report without its trainings: displacements of 0, a short log."""
    out.mkdir()
    directions = (
        ("colin27_t1", "mni152_t1"),
        ("mni152_t1", "colin27_t1"),
        ("colin27_t1", "mni152_gm"),
    )
    field = torch.zeros(1, 2, 96, 112)
    results = []
    for moving, fixed in directions:
        case = Case(moving, fixed, HELD_OUT[1])
        methods = {method: case.measure(field, 0.0035) for method in METHODS}
        results.append(Result(case, methods, case_view(case, field, methods)))
    means = {result.case.direction: result.methods for result in results}
    log = "step,epoch,total,similarity,diffusion,bending,determinant,smallest_determinant,"
    log += "folded_percent,gradient_norm,learning_rate,pairs_per_second\n"
    log += "".join(f"{k},0,{1 / k},1,1,1,1,0.5,0,1,1,1\n" for k in range(1, 9))
    (out / "log.csv").write_text(log)
    trainings = {t: TrainingConfig(out=str(out)) for t in ("T1 to T1", "T1 to grey matter")}
    write_demo_report(results, means, targets(means, 0), out, trainings)


def warned_page(out: Path) -> None:
    """Everything that is long: warnings, words, names and numbers."""
    out.mkdir()
    image = np.random.default_rng(0).random((16, 20))
    pair = PairView(f"{'moving' * 9}.nii.gz to fixed.nii.gz", *[image] * 3, np.zeros((2, 16, 20)))
    verdict = [
        ("how much one image tells of the other (mutual information, nats)", (0.123, 12.345)),
        ("a number", (123456.0, -9876543.0)),
        ("the map", "homeomorphism"),
        ("time", "249 ms"),
        ("the map again", "homeomorphisms-and-diffeomorphisms"),
    ]
    warnings = ["The images share 4 % of their voxels: look at the overlay.", "x" * 200]
    fit = fit_sentence("mutual information (nats)", 0.123, 0.122)
    origin = {"date": "2026-07-31", "command": COMMAND}
    write_report(
        *(out / "report.html", pair.title, verdict, [pair]),
        notes=["A note."],
        fit=fit,
        warnings=warnings,
        origin=origin,
    )


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", PAGES)
def test_nothing_overlaps_and_nothing_sticks_out(browser, pages, kind, view):
    assert defects(browser, pages / kind / "report.html", view) == []


OLD = """
.verdict { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 32px; }
.verdict div { display: block; max-width: none; }
.verdict dd { overflow-wrap: normal; }
"""


@pytest.mark.parametrize("view", ["400", "1000", "print"])
def test_a_word_over_its_neighbour_is_found(browser, pages, tmp_path, view):
    """The layout that let "homeomorphism" run into the time beside it."""
    text = (pages / "warned" / "report.html").read_text()
    page = tmp_path / "old.html"
    page.write_text(text.replace("</style>", f"{OLD}</style>"))
    found = defects(browser, page, view)
    assert any(words.startswith('"homeomorphism" and "249 ms" overlap') for words in found)


BESIDE = '<p style="display: flex; width: 9em"><b>left</b><span>right</span></p>'
OVER = '<p style="margin: 0 0 -1em">one</p><p style="margin: 0">other</p>'


@pytest.mark.parametrize(
    ("element", "words"),
    [
        ('<div style="width: 900px">wide</div>', "the page is"),
        ('<p style="width: 60px">unbreakableword</p>', "its content"),
        (BESIDE, '"left" and "right" touch'),
        (OVER, '"one" and "other" overlap'),
    ],
)
def test_what_is_broken_is_found(browser, tmp_path, element, words):
    page = tmp_path / "broken.html"
    page.write_text(f"<!doctype html><body>{element}</body>")
    assert any(words in defect for defect in defects(browser, page, "400"))


@pytest.mark.parametrize("kind", PAGES)
def test_the_slider_moves_by_mouse_and_by_keyboard(browser, pages, kind):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    look(browser, pages / kind / "report.html", "1400")
    slider = browser.find_element(By.CSS_SELECTOR, ".compare input")
    before = browser.find_element(By.CSS_SELECTOR, ".compare .over")
    edge = browser.find_element(By.CSS_SELECTOR, ".compare .edge")

    def shown() -> tuple[float, float, float]:
        """How much of the picture is before: the slider's, the clipped picture's, the edge's."""
        clip = before.value_of_css_property("clip-path")
        hidden = float(clip.partition("(")[2].split()[1].rstrip("%"))
        place = edge.rect["x"] + edge.rect["width"] / 2 - slider.rect["x"]
        share = 100 * place / slider.rect["width"]
        return float(slider.get_attribute("value")), 100 - hidden, share

    assert shown() == pytest.approx((50, 50, 50), abs=0.5)
    width = slider.rect["width"]
    ActionChains(browser).move_to_element_with_offset(slider, -0.3 * width, 0).click().perform()
    value, picture, line = shown()
    assert 15 <= value <= 25
    assert (picture, line) == pytest.approx((value, value), abs=0.5)
    slider.send_keys(Keys.ARROW_RIGHT * 5)
    assert shown() == pytest.approx((value + 5,) * 3, abs=0.5)
    slider.send_keys(Keys.HOME)
    assert shown() == pytest.approx((0, 0, 0), abs=0.5)


@pytest.mark.parametrize("kind", PAGES)
def test_the_console_stays_empty(browser, pages, kind):
    browser.get_log("browser")  # what earlier pages left
    look(browser, pages / kind / "report.html", "1000")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "DEBUG"] == []


def test_an_error_in_the_console_is_found(browser, tmp_path):
    page = tmp_path / "error.html"
    page.write_text("<!doctype html><script>nothing.at.all()</script>")
    look(browser, page, "1000")
    assert any("nothing" in entry["message"] for entry in browser.get_log("browser"))
