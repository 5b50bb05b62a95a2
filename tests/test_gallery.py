"""What docs/gallery.md says of a pair is what its report, and the other pages about it, say."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS = (DOCS / "gallery.md").read_text().split("\n## ")[1:]
FIGURES = re.compile(
    r"NCC (\S+) -> ([^\s,]+),? MI (\S+) -> ([^\s,]+),? compared on (\S+) % of the voxels, "
    r"(\S+) % of the cells folded, smallest determinant ([^\s,]+)"
)


def figures(text):
    """Of the first verdict in it."""
    return FIGURES.search(" ".join(text.split())).groups()


def test_every_pair_has_its_figures():
    assert len(SECTIONS) == 5 and len({figures(section) for section in SECTIONS}) == 5


@pytest.mark.parametrize(("section", "report"), [(0, "heads"), (-1, "wrong_slice")])
def test_a_report_says_what_stands_under_its_picture(section, report):
    page = (DOCS / f"gallery/{report}.html").read_text(encoding="utf-8")
    text = unescape(re.sub("<[^>]*>", "", page)).replace("\N{NO-BREAK SPACE}", " ")
    before, after, *information, compared, _, determinant = figures(SECTIONS[section])
    assert f"NCC {before} → {after}, on the {compared} % of voxels" in text
    row = re.search(r"mutual information, nats\)\s*(\S+)\s*→\s*([\d.]+)", text)
    smallest = re.search(r"\(Jacobian determinant\) (-?[\d.]+\d)", text)
    # One of the two rounds more.
    assert list(map(float, row.groups())) == pytest.approx([*map(float, information)], abs=0.006)
    assert float(smallest[1]) == pytest.approx(float(determinant), abs=0.0006)
    warnings = re.findall("^> warning: (.*)", SECTIONS[section], re.MULTILINE)
    assert all(warning in text for warning in warnings)


def test_other_pages_register_the_first_pair_to_the_same_figures():
    notebook = json.loads((DOCS / "notebooks/two_volumes.ipynb").read_text())
    printed = [
        "".join(output["text"])
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "text" in output
    ]
    page = (DOCS / "registration.md").read_text()
    assert figures(SECTIONS[0]) == figures(printed[0]) == figures(page)
