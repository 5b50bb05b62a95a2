"""The notebooks run from the first cell to the last: small here, whole in `make test-long`.

Their code is Python's alone, so they need no Jupyter to run: each cell in order, in one namespace,
in an empty folder. The cell that is tagged "parameters" is what the small form replaces.
"""

import ast
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "docs/notebooks"
SMALL = {
    "two_volumes": 'moving, fixed = "moving.nii.gz", "fixed.nii.gz"',
    "in_your_loop": "size, steps = 16, 2",
    "train_on_your_pairs": "dimensions, size, steps = 3, 16, 4",
}
NEEDED = {"in_your_loop": ("monai", "voxelmorph")}
# Of MONAI's and VoxelMorph's own libraries, and of torch's: not what is tested here.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


def cells(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def is_parameters(cell):
    return "parameters" in cell["metadata"].get("tags", ())


def run(name, parameters, folder, monkeypatch):
    """Every cell; where the last line is an expression, its picture is drawn, as Jupyter does."""
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package, reason=f"the notebook needs it: pip install {package}")
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] != "code":
            continue
        text = parameters if parameters and is_parameters(cell) else "".join(cell["source"])
        tree, title = ast.parse(text), f"{name}, cell {number}"
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, title, "exec"), names)
        if shown is not None:
            value = eval(compile(ast.Expression(shown.value), title, "eval"), names)
            for form in ("_repr_html_", "_repr_png_"):
                if hasattr(value, form):
                    assert getattr(value, form)()
    return names


def save_pair(folder):
    """16^3 voxels: a ball, and a larger one."""
    places = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"))
    apart = np.sqrt(((places - 7.5) ** 2).sum(0))
    for name, radius in (("moving", 4.5), ("fixed", 5.5)):
        ball = 100 / (1 + np.exp(apart - radius)) + places.sum(0) / 4
        nib.save(
            nib.Nifti1Image(ball.astype(np.float32), np.diag([2.0, 2, 2, 1])),
            folder / f"{name}.nii.gz",
        )


def test_every_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_says_how_small_it_can_be_and_nothing_of_a_machine(name):
    found = cells(name)
    assert sum(map(is_parameters, found)) == 1
    text = json.dumps(found)
    assert not any(word in text for word in ("/home/", "/root/", "/tmp/", "/work/", "/Users/"))


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_shows_what_came_of_it(name):
    """As docs/notebooks.py left it: run once from the first cell to the last."""
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert "stream" in kinds and "error" not in kinds
    assert not any(output.get("name") == "stderr" for c in code for output in c["outputs"])


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_small(name, tmp_path, monkeypatch, capsys):
    save_pair(tmp_path)
    names = run(name, SMALL[name], tmp_path, monkeypatch)
    said = capsys.readouterr().out
    if name == "two_volumes":
        assert "report.html" in said and names["result"].certificate.folded_cells == 0
    elif name == "in_your_loop":
        assert said.count("s a step") == 2 and "0.00 % of the cells fold" in said
    else:
        assert "run/last.pt: 4 steps" in said and (tmp_path / "net.pt").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_whole(name, tmp_path, monkeypatch, capsys):
    names = run(name, None, tmp_path, monkeypatch)
    said = capsys.readouterr().out
    if name == "two_volumes":
        assert names["result"].certificate.folded_cells == 0 and "no warnings" in said
    elif name == "in_your_loop":
        assert names["totals"][-1] < names["totals"][0]
    else:
        entry = names["line"]  # of the last validation
        assert entry.dice > entry.dice_before + 0.02 and entry.folded_percent == 0
