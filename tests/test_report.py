import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from diffreg.report.boxes import boxes_figure
from diffreg.report.first_screen import SMALLEST, fit_sentence, folding_sentence
from diffreg.report.html import PairView, Table, write_report
from diffreg.report.page import TICK

NASTY = "<script>alert('1')</script> & \"co\".nii.gz"


class Checker(HTMLParser):
    """Every element is closed, and in order."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "wbr", "path", "circle"})

    def __init__(self):
        super().__init__()
        self.open, self.links, self.images, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[a] for a in ("src", "href") if a in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        assert tag in self.VOID

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def a_pair(title="moving to fixed", folds=False, **more):
    rng = np.random.default_rng(0)
    displacement = 0.1 * rng.standard_normal((2, 16, 20))
    displacement[1, 8, 8] += 3.0 * folds
    images = rng.random((3, 16, 20))
    return PairView(title, *images, displacement, metrics={"NCC": (0.5, 0.75)}, **more)


@pytest.fixture
def written(tmp_path):
    def write(*arguments, **keywords):
        path = tmp_path / "report.html"
        write_report(path, *arguments, **keywords)
        page = Checker()
        page.source = path.read_text(encoding="utf-8")
        page.feed(page.source)
        page.close()
        assert page.open == []
        page.words = re.sub(r"\s+", " ", " ".join(page.text))
        return page

    return write


def full(written, **keywords):
    steps = list(range(5))
    curves = {
        "loss/training": (steps, steps),
        "loss/held out": (steps, steps),
        "energy/E1": (steps, steps),
    }
    table = Table([("NCC", "", ".2f", "higher")], [(NASTY, [0.7]), ("ours", [0.9])])
    pairs = [a_pair(NASTY), a_pair("second"), a_pair("third")]
    verdict = [("NCC", (0.5, 0.75)), ("time", "4.6 ms"), ("smallest determinant", 0.41)]
    return written(NASTY, verdict, pairs, table, curves, [NASTY, "A note."], **keywords)


def test_nothing_is_fetched(written):
    page = full(written)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page.source)
    assert "@import" not in page.source and "url(" not in page.source


def test_what_the_user_wrote_is_escaped(written):
    page = full(written)
    assert NASTY not in page.source
    assert page.source.count("<script") == 1
    assert page.words.count("alert('1')") >= 4


def test_the_first_screen_says_the_verdict(written):
    page = full(written)
    hero = page.words[: page.words.index("Pair by pair")]
    assert f"No cell folds in any of the 3 pairs: {SMALLEST} 0." in hero
    assert re.search(r"NCC 0\.500 . 0\.750", hero) and "4.6 ms" in hero
    assert "Before" in hero and "After" in hero


def test_the_fit_comes_before_the_folds(written):
    fit = fit_sentence("NCC", 0.5, 0.75)
    page = written("One", [], [a_pair()], fit=fit)
    said = re.findall(r'<p class="sentence">.*?<span>(.*?)</span>', page.source)
    assert re.fullmatch(r"The images agree better than before: NCC 0\.500\s.\s0\.750\.", said[0])
    assert said[1].startswith("No cell folds")


@pytest.mark.parametrize(
    ("ends", "good", "words"),
    [
        ((0.5, 0.75), True, "better than before"),
        ((0.75, 0.5), False, "worse than before"),
        ((0.5, 0.5), None, "as before, no better"),
        ((1.0, 1 - 1e-9), None, "as before, no better"),
        ((0.5, float("nan")), None, "not known"),
        ((None, 0.5), None, "not known"),
    ],
)
def test_the_sentence_about_the_fit(ends, good, words):
    found, sentence = fit_sentence("NCC", *ends)
    assert found is good and words in sentence


def test_a_worse_fit_is_not_ticked_off(written):
    page = written("One", [], [a_pair()], fit=fit_sentence("NCC", 0.75, 0.5))
    assert page.source.index('class="sentence bad"') < page.source.index('class="sentence"')
    page = written("One", [], [a_pair()], fit=fit_sentence("NCC", 0.5, 0.5))
    assert page.source.index('class="sentence warned"') < page.source.index('class="sentence"')
    assert page.source.count(TICK) == 1


def test_warnings_come_first_and_nothing_is_ticked_off_beside_them(written):
    warnings = ["The images share 4 % of their voxels.", NASTY]
    page = written("One", [], [a_pair()], fit=fit_sentence("NCC", 0.5, 0.75), warnings=warnings)
    assert page.words.index("2 warnings") < page.words.index("share 4 %")
    assert page.words.index("share 4 %") < page.words.index("The images agree")
    assert NASTY not in page.source
    assert TICK not in page.source and page.source.count('class="sentence warned"') == 2
    assert TICK in written("One", [], [a_pair()]).source


def test_how_it_was_made_is_said_at_the_end(written):
    origin = {"date": "2026-07-31 12:05:00 +02:00", "command": NASTY, "device": "a processor"}
    page = written("One", [], [a_pair()], notes=["A note."], origin=origin)
    assert NASTY not in page.source
    said = page.words[page.words.index("How it was made") :]
    assert "2026-07-31 12:05:00 +02:00" in said and "alert('1')" in said and "a processor" in said
    assert "#origin" in page.links


def test_the_sections_come_in_order(written):
    page = full(written, credits=["Images: somebody."])
    headings = re.findall(r"<h2[^>]*>([^<]*)", page.source)
    assert headings == ["Pair by pair", "Training", "Results", "Notes"]
    assert page.words.index("Images: somebody.") > page.words.index("A note.")


def test_every_picture_has_its_own_alternative_text(written):
    page = written("One", [], [a_pair()])
    texts = [image["alt"] for image in page.images]
    assert len(texts) == len(set(texts)) == 10
    for name in ("Moving", "Fixed", "Warped", "Checkerboard", "Deformed mesh", "Jacobian"):
        assert any(text.startswith(name) for text in texts)


def test_only_the_first_pairs_are_shown_in_full(written):
    page = full(written, in_full=1)
    assert page.source.count("Checkerboard</b>") == 1
    assert page.source.count("Deformed mesh</b>") == 3


def test_curves_with_one_first_half_share_a_picture(written):
    page = full(written)
    curves = [i["alt"] for i in page.images if i["alt"].startswith("Training curves")]
    assert curves == ["Training curves: training, held out", "Training curves: E1"]


def test_a_fold_is_said_in_words_and_in_the_legend(written):
    page = written("One", [], [a_pair(folds=True)])
    count = int(
        re.search(rf"(\d+) of 285 cells fold: {re.escape(SMALLEST)} \N{{MINUS SIGN}}", page.words)[
            1
        ]
    )
    assert count > 0
    assert f"folded: {count} of 285 cells" in page.words
    assert 'class="sentence bad"' in page.source


@pytest.mark.parametrize(
    ("cells", "good", "sentence"),
    [
        ([np.array([[0.414]])], True, f"No cell folds: {SMALLEST} 0.414"),
        ([np.array([[0.0, 1.0]])], False, f"1 of 2 cells folds: {SMALLEST} 0"),
        (
            [np.ones((30, 50)), np.array([[-0.5, -0.25, 1.0]])],
            False,
            f"2 of 1,503 cells fold, in 1 of 2 pairs: {SMALLEST} \N{MINUS SIGN}0.500",
        ),
        (
            [np.array([[np.nan, 1.0]])],
            False,
            "1 of 2 cells folds: the displacement is not finite everywhere",
        ),
        ([np.zeros((0, 3))], True, "There are no cells that could fold"),
        (
            [np.ones((1, 1))] * 4,
            True,
            f"No cell folds in any of the 4 pairs: {SMALLEST} 1",
        ),
    ],
)
def test_the_sentence_about_folding(cells, good, sentence):
    assert folding_sentence(cells) == (good, sentence)


def test_a_report_without_pairs_is_the_verdict(written):
    page = written("Nothing", [("NCC", 0.7)], [])
    assert not page.images and "0.700" in page.words and "cell" not in page.words


def test_a_mask_is_mentioned(written):
    assert "mask outlined" in written("One", [], [a_pair(mask=np.ones((16, 20)))]).words


def test_numbers_of_an_only_pair_are_not_said_twice(written):
    page = written("One", [("NCC", (0.5, 0.75))], [a_pair()])
    assert page.words.count("0.750") == 1


def test_the_same_input_gives_the_same_bytes(written):
    assert full(written).source == full(written).source


def test_a_failure_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    write = Path.write_text

    def full(file, text, **keywords):
        write(file, text[:100], **keywords)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(path, "title", [], [])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_name_that_is_no_utf8_is_written_in_letters(tmp_path):
    write_report(tmp_path / "report.html", "caf\udce9.nii", [], [])
    assert r"caf\udce9.nii</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_sixteen_pairs_stay_small(written):
    pairs = []
    for k in range(16):  # noise: the worst that PNG can meet
        image = np.random.default_rng(k).integers(0, 99, (96, 112)).astype(float)
        pairs.append(PairView(f"pair {k}", image, image, image, np.zeros((2, 96, 112))))
    assert len(written("Many", [], pairs).source) < 6e6


def test_charts_several_tables_and_a_sentence_of_its_own(written):
    table = Table([("Dice",)], [("ours", [0.9])])
    page = written(
        *(
            "Evaluation",
            [("Dice", (0.8, 0.9))],
            [a_pair()],
            {"All pairs": table, "By group": table},
        ),
        charts={"Dice": boxes_figure({"all": {"before": [0.8, 0.7], "after": [0.9, np.nan]}})},
        sentence=(False, "Cells fold in 3 of 90 pairs"),
    )
    assert "Cells fold in 3 of 90 pairs." in page.words
    assert "All pairs" in page.words and "By group" in page.words
    assert [image["alt"] for image in page.images if image["alt"] == "Dice"] == ["Dice"]
    assert {"#charts", "#results"} <= set(page.links)
