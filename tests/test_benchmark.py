"""`diffreg bench`: fair candidates, counts that noise cannot touch, results as they are."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import diffreg.ops
from diffreg.benchmark import network, operators, run, tables
from diffreg.benchmark.cases import CASES, Draw
from diffreg.benchmark.counting import counted
from diffreg.cli import main as cli

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads(Path(run.__file__).with_name("schema.json").read_text())
# Operators called, and bytes allocated a voxel, by the operator forward and backward: its outputs.
# The level sets' two scalars become tensors; the objective's gradient is scaled by the upstream;
# mutual information keeps a histogram of each sample.
COUNTS = {
    "warp": (2, 12),
    "deformation_energy": (3, 8),
    "parallel_level_sets": (4, 4),
    "registration_objective": (3, 8),
    "correlation": (2, 4),
    "local_correlation": (2, 4),
    "mutual_information": (2, 4.6),
    "gradient_scale": (2, 4),
    "jacobian_determinant": (2, 24),
}


def test_every_operator_is_measured():
    names = {name.removesuffix("_reference") for name in diffreg.ops.__all__ if "_refer" in name}
    assert set(CASES) == names


def value_and_gradient(function, inputs):
    value = function(*inputs)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    upstream = torch.linspace(0.5, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value, *torch.autograd.grad(value, wanted, upstream)


@pytest.mark.parametrize("shape", [(2, 1, 33, 48), (1, 3, 64, 40)], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_eager_forms_do_the_operators_work(case, shape):
    inputs = case.inputs(Draw(shape, torch.float64))
    ours = value_and_gradient(case.ours, inputs)
    for form in case.eager(inputs):
        for own, other in zip(ours, value_and_gradient(form, inputs), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_calls_and_allocations(name):
    case, draw = CASES[name], Draw((2, 1, 128, 96))
    row = operators.measure(case, draw, True, seconds=0)
    calls, allocated = COUNTS[name]
    assert row["operators"]["diffreg"] == calls
    found = row["bytes_allocated_a_pixel"]
    assert found["diffreg"] == pytest.approx(allocated, rel=0.03, abs=0.1)
    eager = {k: v for k, v in found.items() if k != "diffreg"}
    assert all(value > 2 * allocated for value in eager.values())
    assert all(row["operators"][k] > 2 * calls for k in eager)
    jsonschema.validate(row, SCHEMA["$defs"]["operator"] | {"$defs": SCHEMA["$defs"]})


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_every_row_of_the_full_plan(case, backward):
    """On small images; in half types and at the zero field too, something is left to compare."""
    for draw, _ in run._draws(case, False, "cpu"):
        samples, channels, height, width = draw.shape
        small = replace(draw, shape=(min(samples, 2), channels, min(height, 33), min(width, 35)))
        row = operators.measure(case, small, backward, seconds=0)
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
    assert "wrong" not in row["nanoseconds_a_pixel"]


@pytest.mark.parametrize("field", ["zero", "rough", "far"])
def test_fields_are_what_they_are_called(field):
    u = Draw((1, 1, 64, 64), field=field).displacement()
    smallest = diffreg.ops.jacobian_determinant(u, "min").min()
    reach = u.abs().max()
    assert {"zero": reach == 0, "rough": smallest < 0, "far": reach > 64}[field]
    assert Draw((1, 1, 64, 64)).displacement().abs().max() == pytest.approx(3, rel=1e-3)


def test_profiles_name_the_operators():
    moving, u = CASES["warp"].inputs(Draw((1, 1, 32, 32)))
    with profile(activities=[ProfilerActivity.CPU]) as record:
        diffreg.ops.warp(moving, u).sum().backward()
    names = {event.key for event in record.key_averages()}
    assert {"diffreg::warp", "diffreg::warp_backward"} <= names


@pytest.fixture
def brief(monkeypatch):
    """The quick form with hardly a repetition, and a step and a prediction of the smallest kind."""
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(run, "HEADLINE", ((2, 1, 32, 32),) * 2)
    step, predicted = network.training_step, network.prediction
    monkeypatch.setattr(
        run, "training_step", lambda model, size, batch, *rest: step(model, 16, 2, *rest[:-1], 0)
    )
    monkeypatch.setattr(
        run, "prediction", lambda model, size, batch, *rest: predicted(model, 16, 1, *rest[:-1], 0)
    )
    monkeypatch.setattr(run, "file_to_file", lambda *_: network.file_to_file(24, 1))
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
    assert (out / "benchmark.md").read_text() in printed
    assert [row["operator"] for row in result["operators"][::2]] == list(CASES)
    assert (out / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_a_gpu_that_is_not_there(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "--device cuda needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bench" / "results").glob("benchmark*.json")), ids=lambda path: path.stem
)
def test_committed_results(path):
    result = json.loads(path.read_text())
    jsonschema.validate(result, SCHEMA)
    assert not result["quick"]
    assert path.with_suffix(".md").read_text() == tables.markdown(result)


def test_the_readme_shows_the_committed_table():
    path = ROOT / "bench" / "results" / "benchmark.json"
    shown = (ROOT / "README.md").read_text().partition("<!-- bench -->")[2]
    table = shown.partition("<!-- /bench -->")[0].strip()
    assert table == tables.headline(json.loads(path.read_text())).strip()


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
        for row in tables._headline_rows(json.loads(path.read_text())):
            reached.setdefault(row["operator"], []).append(f"{row['speedup'][candidate]:.1f}")
    for operator in ("warp", "deformation_energy", "parallel_level_sets", "registration_objective"):
        (line,) = re.findall(rf"^  \| `{operator}` \|.*$", page, re.MULTILINE)
        assert re.findall(r"([\d.]+) of \d+", line) == reached[operator]
