"""Every Python block of README.md and docs/ runs, a page's blocks in order and in one namespace.

So do the commands in its blocks of the shell, where all of these are diffreg's.
"""

import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import pytest

from diffreg.cli.main import main
from diffreg.transforms import FORMATS

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n((?:diffreg .*\n)+)```$", re.MULTILINE)
PAGES = [
    page
    for page in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("**/*.md")),
        ROOT / "paper/results/README.md",
    ]
    if page.exists() and BLOCK.search(page.read_text())
]
REGISTERS = {"transforms.md", "warnings.md"}  # pairs that fit and that do not, volumes: minutes


# On first use, parts of torch warn about torch's own torch.jit.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if p.name in REGISTERS else ()) for p in PAGES],
    ids=lambda page: page.name,
)
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a block writes is not left in the tree
    text, names = page.read_text(), {"__name__": page.stem}
    blocks = [*BLOCK.finditer(text), *SHELL.finditer(text)]
    for block in sorted(blocks, key=re.Match.start):
        if block.re is SHELL:
            for line in block[1].splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
            continue
        if "import ants" in block[1] and importlib.util.find_spec("ants") is None:
            continue  # which holds numpy and scipy back, and so is no part of the tests' packages
        # Blank lines in front: an error names the line of the page.
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), names)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs/operators.md"], ids=lambda page: page.name
)
def test_the_five_lines_take_volumes(page):
    """The first lines that import operators, with images of 9 x 10 x 11 voxels."""
    lines = next(block[1] for block in BLOCK.finditer(page.read_text()) if "_energy" in block[1])
    for image, volume in (
        ("torch.rand(2, 1, 1, 64, 64)", "torch.rand(2, 1, 1, 9, 10, 11)"),
        ("torch.zeros(1, 2, 64, 64,", "torch.zeros(1, 3, 9, 10, 11,"),
    ):
        assert lines.count(image) == 1
        lines = lines.replace(image, volume)
    names = {}
    exec(lines, names)
    displacement = names.get("u", names.get("displacement"))
    assert displacement.grad.shape == (1, 3, 9, 10, 11)
    assert displacement.grad.isfinite().all() and displacement.grad.any()


def test_links_inside_the_documentation_lead_somewhere():
    broken = []
    for page in [
        ROOT / "README.md",
        *(ROOT / "docs").glob("**/*.md"),
        ROOT / "paper/results/README.md",
    ]:
        if page.exists():
            for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
                if not (page.parent / target).exists():
                    broken.append(f"{page.name} -> {target}")
    assert broken == []


def test_no_line_of_a_sentence_begins_a_list():
    """A plus at the start of a line makes an item of the rest of its paragraph, and of a block."""
    begun = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("[bdp]*/**/*.md")]:
        before, fenced = "", False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.startswith("```")
            if re.match(r" {0,3}\+ ", line) and before.strip() and not fenced:
                begun.append(f"{page.relative_to(ROOT)}:{number}")
            before = line
    assert begun == []


def test_the_rows_of_a_table_have_the_cells_of_its_head():
    def cells(line):
        line = re.sub(r"`[^`]*`", "", line).strip()
        return len(re.findall(r"(?<!\\)\|", line.removeprefix("|").removesuffix("|"))) + 1

    wrong, rule = [], re.compile(r"\|?[\s:|-]*---[\s:|-]*")
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("diffreg/**/*.md")]:
        lines = page.read_text().splitlines()
        for number, line in enumerate(lines):
            if "|" not in line or not rule.fullmatch(line):
                continue
            below = itertools.takewhile(lambda row: row.startswith("|"), lines[number + 1 :])
            for row in [lines[number - 1], *below]:
                if cells(row) != cells(line):
                    wrong.append(f"{page.name}: {row:.60}")
    assert wrong == []


def test_the_page_of_transforms_has_every_format():
    page = (ROOT / "docs/transforms.md").read_text()
    named = re.findall(
        r"^\| (`[-a-z0-9`, ]+`) \| .* \| (?:yes|no|affine)(?:; [^|]*)? \|$", page, re.MULTILINE
    )
    assert set(re.findall(r"`([-a-z0-9]+)`", " ".join(named))) == set(FORMATS)


def test_every_promise_has_its_test():
    """docs/reliability.md names the tests that hold what it says."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 15
    assert named <= there
