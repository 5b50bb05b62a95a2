"""`diffreg bench`: fair candidates, counts that noise cannot touch, results as they are."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import diffreg.ops
from diffreg.benchmark import kept, network, network_rows, operators, plots, run, tables
from diffreg.benchmark import prediction as predictions
from diffreg.benchmark.cases import CASES, Draw, as_tensors
from diffreg.benchmark.counting import counted
from diffreg.cli import main as cli

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads(Path(run.__file__).with_name("schema.json").read_text())
# Operators called, and bytes allocated a voxel of an image and of a volume, by the operator forward
# and backward: its outputs. Mutual information keeps a histogram of each sample.
COUNTS = {
    "warp": (2, 12, 16),
    "affine_warp": (2, 4, 4),
    "deformation_energy": (2, 8, 12),
    "parallel_level_sets": (2, 4, 4),
    "registration_objective": (1, 8, 12),
    "registration_objective_default": (1, 8, 12),
    "correlation": (2, 4, 4),
    "local_correlation": (2, 4, 4),
    "mutual_information": (2, 4.6, 4.8),
    "gradient_scale": (2, 4, 4),
    "jacobian_determinant": (2, 24, 44),
    "jacobian_determinant_min": (2, 12, 16),
}
IMAGE, VOLUME = (2, 1, 128, 96), (2, 1, 22, 20, 21)


def test_every_operator_is_measured():
    names = {name.removesuffix("_reference") for name in diffreg.ops.__all__ if "_refer" in name}
    assert {case.operator or case.name for case in CASES.values()} == names


def value_and_gradient(function, inputs):
    values = as_tensors(function(*inputs))
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    upstream = [torch.linspace(0.5, 1, v.numel(), dtype=v.dtype).reshape(v.shape) for v in values]
    return *values, *torch.autograd.grad(values, wanted, upstream)


@pytest.mark.parametrize(
    "shape", [(2, 1, 33, 48), (1, 3, 64, 40), (2, 1, 13, 14, 15), (1, 2, 16, 12, 9)], ids=str
)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_eager_forms_do_the_operators_work(case, shape):
    inputs = case.inputs(Draw(shape, torch.float64))
    ours = value_and_gradient(case.ours, inputs)
    for form in (*case.eager(inputs), case.to_compile(inputs)):
        for own, other in zip(ours, value_and_gradient(form, inputs), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", [IMAGE, VOLUME], ids=["image", "volume"])
@pytest.mark.parametrize("name", CASES)
def test_calls_and_allocations(name, shape):
    row = operators.measure(CASES[name], Draw(shape), True, seconds=0, kept=len(shape) == 5)
    calls, *of_dimensions = COUNTS[name]
    allocated = of_dimensions[len(shape) - 4]
    if name.startswith("jacobian_determinant"):  # of which there are fewer than voxels
        corners = 4 * (1 if name.endswith("min") else 2 ** (len(shape) - 2))
        share = np.prod([n - 1 for n in shape[2:]]) / np.prod(shape[2:])
        allocated -= corners * (1 - share)
    assert row["operators"]["diffreg"] == calls
    found = row["bytes_allocated_a_voxel"]
    assert found["diffreg"] == pytest.approx(allocated, rel=0.01, abs=0.1)
    eager = {k: v for k, v in found.items() if k != "diffreg"}
    assert all(value > 2 * allocated for value in eager.values())
    assert all(row["operators"][k] > 2 * calls for k in eager)
    jsonschema.validate(row, SCHEMA["$defs"]["operator"] | {"$defs": SCHEMA["$defs"]})


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_every_row_of_the_full_plan(case, backward):
    """On small ones; in half types and at the zero field too, something is left to compare."""
    for draw, _, in_process in run._plan(case, False, "cpu"):
        samples, channels, *size = draw.shape
        largest = (33, 35) if draw.dimensions == 2 else (12, 11, 13)
        size = [min(pair) for pair in zip(size, largest, strict=True)]
        small = replace(draw, shape=(min(samples, 2), channels, *size))
        row = operators.measure(case, small, backward, seconds=0, kept=in_process)
        assert not [name for name in row["disagrees"] if name.startswith("eager")], draw
        assert row["speedup"]["best eager"] > 0


def test_one_value_of_the_objective_is_one_operator_and_nothing_else():
    moving, fixed, u = CASES["registration_objective"].inputs(Draw((1, 1, 64, 64)))
    record = counted(
        lambda: diffreg.ops.registration_objective_value_and_gradient(
            moving, fixed, u, {"ncc": 1.0, "lncc": 0.2}
        )
    )
    assert record.operators == ["diffreg.registration_objective.default"]
    assert record.allocated == pytest.approx(u.numel() * 4, abs=64)


def test_a_candidate_with_other_results_has_no_time():
    wrong = replace(CASES["warp"], peers=lambda _: {"wrong": lambda moving, u: moving + 1e-3})
    row = operators.measure(wrong, Draw((1, 1, 32, 32)), False, seconds=0)
    assert row["disagrees"] == ["wrong"]
    assert "wrong" not in row["nanoseconds_a_voxel"]


def test_a_headline_without_a_form_that_agrees_is_an_error(monkeypatch):
    wrong = replace(CASES["correlation"], eager=lambda _: [lambda w, r: (w - r).mean((1, 2, 3))])
    monkeypatch.setattr(run, "CASES", {"correlation": wrong})
    monkeypatch.setattr(run, "HEADLINE", ((1, 1, 8, 8),) * 2)
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="correlation, 1x1x8x8: no form in PyTorch gives"):
        list(run._operators(True, "cpu", str))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 1, 24, 26, 25)], ids=str)
@pytest.mark.parametrize("field", ["zero", "rough", "far"])
def test_fields_are_what_they_are_called(field, shape):
    u = Draw(shape, field=field).displacement()
    smallest = diffreg.ops.jacobian_determinant(u, "min").min()
    reach = u.abs().max()
    assert {"zero": reach == 0, "rough": smallest < 0, "far": reach > max(shape)}[field]
    smooth = Draw(shape).displacement()
    assert smooth.abs().max() == pytest.approx(3, rel=1e-3)
    assert smooth.diff(dim=-1).abs().max() < 3


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 1, 6, 7, 8)], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_profiles_name_the_operators(case, shape):
    inputs = case.inputs(Draw(shape))
    with profile(activities=[ProfilerActivity.CPU]) as record:
        torch.stack([value.sum() for value in as_tensors(case.ours(*inputs))]).sum().backward()
    names = {event.key for event in record.key_averages()}
    name = case.operator or case.name
    expected = {f"diffreg::{name}", f"diffreg::{name}_backward"}
    if name == "registration_objective":  # its forward pass leaves the gradient
        expected.remove("diffreg::registration_objective_backward")
    assert expected <= names


ENTRY = {
    **{"operator": "warp", "direction": "forward + backward", "shape": [1, 1, 6, 7, 8]},
    **{"dtype": "float32", "field": "smooth", "threads": 1, "memory": "kept"},
    "nanoseconds_a_voxel": {"torch.compile": 50.0, "diffreg": 5.0, "copy": 1.0},
    **{"spread": 0.1, "compile_seconds": 100.0, "commit": "abc", "date": "2026-01-02"},
}


def test_a_kept_figure_stands_beside_the_same_work_in_the_same_place():
    row = {name: ENTRY[name] for name in kept.SAME}
    figures = {"nanoseconds_a_voxel": {"diffreg": 10.0}, "speedup": {}}
    both = [ENTRY | kept.here() | {"torch": "0.1"}, ENTRY | kept.here()]
    for entries, expected in ((both, 5.0), (both[:1], None), ([], None)):
        found = kept.with_kept(row | {k: dict(v) for k, v in figures.items()}, entries)
        assert found["speedup"].get("torch.compile") == expected
        assert ("compiled_earlier" in found) == (expected is not None)
    assert found["memory"] == "kept"
    other = row | {"memory": "given back"} | {k: dict(v) for k, v in figures.items()}
    assert not kept.with_kept(other, both)["speedup"]


def test_what_is_kept_of_a_compiled_row(tmp_path):
    case, draw = CASES["correlation"], Draw((1, 1, 6, 7, 8))
    row = operators.measure(case, draw, True, seconds=0, kept=True)
    row["nanoseconds_a_voxel"]["torch.compile"] = row["spread"]["torch.compile"] = 1.0
    path = tmp_path / "kept.json"
    for commit in ("first", "second"):
        kept.keep(kept.kept_row(row, commit), path)
    (entry,) = kept.load(path)
    assert entry["commit"] == "second" and entry["torch"] == torch.__version__
    assert kept.with_kept(row, [entry])["compiled_earlier"]["commit"] == "second"
    with pytest.raises(RuntimeError, match=r"torch\.compile gives other results than diffreg"):
        kept.kept_row(row | {"disagrees": ["torch.compile"]}, "third")


def test_the_kept_figures_that_are_committed():
    for entry in kept.load():
        assert {*kept.SAME, *kept.PLACE, "commit", "date"} <= set(entry)
        assert len(entry["shape"]) == 5 and entry["nanoseconds_a_voxel"]["torch.compile"] > 0


@pytest.fixture
def brief(monkeypatch):
    """The quick form with hardly a repetition, and a step and a prediction of the smallest kind."""
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(run, "HEADLINE", ((2, 1, 32, 32),) * 2)
    monkeypatch.setattr(run, "QUICK_3D", (1, 1, 12, 12, 12))
    monkeypatch.setattr(run, "SECOND_DERIVATIVES", ((1, 1, 8, 8), (1, 1, 6, 6, 6)))
    entry = ENTRY | kept.here() | {"shape": [1, 1, 12, 12, 12]}
    monkeypatch.setattr(kept, "load", lambda: [entry])
    step, predicted = network.training_step, predictions.prediction
    monkeypatch.setattr(
        network_rows,
        "training_step",
        lambda model, size, batch, *rest: step(model, 16, 2, *rest[:-1], 0),
    )
    monkeypatch.setattr(
        network_rows,
        "prediction",
        lambda model, size, batch, *rest: predicted(model, 16, 1, *rest[:-1], 0),
    )
    monkeypatch.setattr(network_rows, "file_to_file", lambda *_: predictions.file_to_file(24, 1))
    monkeypatch.setattr(run, "call_overhead", lambda _: [])


def test_the_command_prints_and_writes_the_tables(brief, tmp_path, capsys):
    out = tmp_path / "bench"
    assert cli.main(["bench", "--quick", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        *("benchmark.json", "benchmark.md", "benchmark.png"),
    }
    result = json.loads((out / "benchmark.json").read_text())
    jsonschema.validate(result, SCHEMA)
    page = (out / "benchmark.md").read_text()
    assert page in printed
    for axes in (4, 5):
        rows = [row["operator"] for row in result["operators"] if len(row["shape"]) == axes]
        assert rows[::2] == list(CASES)
    words = " ".join(page.split())
    # Of the warp there is a kept figure under torch.compile; the others are named.
    assert "timed in another run (commit abc, 2026-01-02)" in words
    assert "Not timed under torch.compile, with this torch on this processor: affine_warp" in words
    assert (out / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    plots.plot(result | {"operators": [r for r in result["operators"] if len(r["shape"]) == 4]})


def test_a_gpu_that_is_not_there(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "--device cuda needs a GPU" in capsys.readouterr().err


def test_a_candidate_has_one_colour_in_both_panels(monkeypatch):
    seen = {}
    draw = plots._draw

    def noted(axes, rows, colors):
        draw(axes, rows, colors)
        for bars in axes.containers:
            seen.setdefault(bars.get_label(), set()).add(bars[0].get_facecolor())

    monkeypatch.setattr(plots, "_draw", noted)
    plots.plot(json.loads((ROOT / "bench" / "results" / "benchmark.json").read_text()))
    assert all(len(colors) == 1 for colors in seen.values())
    assert len({color for colors in seen.values() for color in colors}) == len(seen) > 3


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bench" / "results").glob("benchmark*.json")), ids=lambda path: path.stem
)
def test_committed_results(path):
    result = json.loads(path.read_text())
    jsonschema.validate(result, SCHEMA)
    assert not result["quick"]
    assert path.with_suffix(".md").read_text() == tables.markdown(result)


def test_the_operators_page_shows_the_committed_volumes():
    path = ROOT / "bench" / "results" / "benchmark.json"
    expected = tables.volumes(json.loads(path.read_text())).strip()
    if not expected:
        pytest.skip("the committed run is of images alone")
    shown = (ROOT / "docs" / "operators.md").read_text().partition("<!-- volumes -->")[2]
    assert shown.partition("<!-- /volumes -->")[0].strip() == expected


def test_the_table_has_figures_and_no_judgement():
    path = ROOT / "bench" / "results" / "benchmark.json"
    table = tables.headline(json.loads(path.read_text()))
    assert "2.8x" in table
    assert not re.search(r"missed|met\b|target", table)


def test_the_targets_stand_beside_the_committed_figures():
    path = ROOT / "bench" / "results" / "benchmark.json"
    page = (ROOT / "docs" / "operators.md").read_text()
    reached: dict[str, list[str]] = {}
    for candidate in ("best eager", "torch.compile"):
        for row in tables.headline_rows(json.loads(path.read_text())):
            reached.setdefault(row["operator"], []).append(f"{row['speedup'][candidate]:.1f}")
    for operator in ("warp", "deformation_energy", "parallel_level_sets", "registration_objective"):
        (line,) = re.findall(rf"^  \| `{operator}` \|.*$", page, re.MULTILINE)
        assert re.findall(r"([\d.]+) of \d+", line) == reached[operator]
