"""bench/gpu: the GPU's nine minutes, walked through on the CPU; limits, failures, what is kept."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diffreg.ops import _autograd

ROOT = Path(__file__).parents[1]
GPU = ROOT / "bench" / "gpu"
PARTS = ["sanitizer", "kernels", "calls", "training", "counters", "rivals"]


@pytest.fixture
def module(monkeypatch):
    """module(name): one of bench/gpu; imported anew, because others may have such names."""
    monkeypatch.syspath_prepend(str(GPU))
    before = dict(sys.modules)

    def load(name):
        return __import__(name)

    yield load
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(GPU)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The whole run, its exit status, and the CPU seconds of all its processes."""
    out = tmp_path_factory.mktemp("gpu")
    begin = os.times()
    command = [GPU / "run.sh", out, "--dry-run", "--seconds", "3000"]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable}
    )
    end = os.times()
    used = end.children_user + end.children_system - begin.children_user - begin.children_system
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return out, used


def test_every_part_is_walked_through_on_the_cpu(dry_run):
    out, _ = dry_run
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "results.json"]
    result = json.loads((out / "results.json").read_text())
    assert result["dry_run"] and list(result["parts"]) == PARTS
    for name, part in result["parts"].items():
        assert part["status"] in ("passed", "left out"), (name, part)
        assert part["rows"] and not [row for row in part["rows"] if "failed" in row]


def test_every_operator_has_a_row_in_both_dimensions(dry_run):
    import diffreg.ops

    out, _ = dry_run
    rows = json.loads((out / "results.json").read_text())["parts"]["kernels"]["rows"]
    measured = {(row["name"], len(row["shape"])) for row in rows if "us" in row}
    names = {name.removesuffix("_reference") for name in diffreg.ops.__all__ if "_refer" in name}
    for operator in names:
        # The objective's own backward operator is for terms that are differentiated one by one.
        alone = operator == "registration_objective"
        for name in [operator] if alone else [operator, f"{operator}_backward"]:
            assert (name, 4) in measured and (name, 5) in measured
    assert "torch" in rows[0]["versions"]


def test_a_dry_run_is_cheap(dry_run):
    assert dry_run[1] < 40  # 18 on a machine of its own


def test_a_part_that_fails_or_takes_too_long_does_not_end_the_run(module, tmp_path, monkeypatch):
    run = module("run")

    def code(name, seconds, text):
        return run.Part(name, seconds, [sys.executable, "-c", text])

    rows = "import os; open(os.environ['DIFFREG_GPU_ROWS'], 'a').write('{\"k\": 1}\\n{\"cut');"
    some = [
        code("wrong", 30, "raise SystemExit(7)"),
        code("long", 3, f"{rows} import subprocess; subprocess.run(['sleep', '60'])"),
        code("absent", 30, "raise SystemExit(3)"),
        code("right", 30, "print('said')"),
    ]
    monkeypatch.setattr(run, "parts", lambda architecture, dry: some)
    said = []
    begin = time.monotonic()
    good = run.run(tmp_path, True, 60.0, [], said.append)
    assert time.monotonic() - begin < 30 and not good
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "wrong": "failed, status 7",
        "long": "stopped: out of time",
        "absent": "left out",
        "right": "passed",
    }
    assert parts["long"]["rows"] == [{"k": 1}] and "  said" in said


def test_no_part_begins_when_all_time_is_used(module, tmp_path, monkeypatch):
    run = module("run")
    part = run.Part("late", 30, [sys.executable, "-c", "raise SystemExit(7)"])
    monkeypatch.setattr(run, "parts", lambda architecture, dry: [part])
    assert not run.run(tmp_path, True, 0.0, [], str)
    (late,) = json.loads((tmp_path / "results.json").read_text())["parts"].values()
    assert late["status"] == "stopped: out of time"


def test_limits_leave_room_for_the_most_important(module):
    run = module("run")
    parts = run.parts("90", False)
    assert [part.name for part in parts] == ["build", "tests", "training_tests", *PARTS]
    assert sum(part.seconds for part in parts[:5]) <= run.SECONDS < 600
    assert parts[0].environment["DIFFREG_CUDA_ARCHITECTURES"] == "90"


def test_what_is_missing_is_one_line(module, monkeypatch):
    run = module("run")
    monkeypatch.setattr(run.shutil, "which", lambda name, path: name != "nvcc" or None)
    assert run.missing(False) == "missing: nvcc"
    assert run.missing(True) is None


def test_the_tests_need_what_is_asked_for_alone():
    """A package that is missing would end all of them: pytest collects both files, or none."""
    others = "nibabel", "SimpleITK", "matplotlib", "PIL", "scipy", "selenium", "skimage"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others})); import test_gpu, test_training"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "gpu")))
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_piece_that_fails_gives_a_row(module, tmp_path, monkeypatch):
    rows = module("rows")
    monkeypatch.setenv(rows.FILE, str(tmp_path / "rows"))
    trial = rows.Trial()
    with trial("a", shape=[1]):
        raise NotImplementedError("no kernel\nfor this")
    with trial("b"):
        raise RuntimeError
    # As an operator tells of a card's memory that has its kernel called, and not its function.
    monkeypatch.setattr(_autograd, "what_torch_said", lambda: "CUDA out of memory. Tried\nto")
    with trial("c"):
        raise RuntimeError("aoti_torch_aten_new_empty(...) API call failed at csrc/a.h, line 3")
    found = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert found[0] == {"name": "a", "shape": [1], "left_out": "no kernel"}
    assert found[1]["failed"].startswith("RuntimeError")
    assert found[2] == {"name": "c", "left_out": "CUDA out of memory. Tried"}
    with pytest.raises(SystemExit, match="1"):
        trial.end()


CSV = """==PROF== Connected
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum"
"","","ns","byte"
"0","void diffreg::warp::forward_kernel<float>(float const*)","331,000","1,073,741,824"
"""


def test_counters_are_read(module):
    counters = module("counters")
    assert counters.counted(CSV) == [
        {
            "kernel": "void diffreg::warp::forward_kernel<float>",
            "ns": 331000.0,
            "bytes read": 1073741824.0,
        }
    ]
    assert counters.counted("==ERROR== no permission") == []


def test_the_worst_are_single_operators_in_float32(module):
    counters = module("counters")
    row = {"dtype": "float32", "shape": [1, 2]}
    rows = [row | {"name": str(k), "share": k / 10} for k in (5, 2, 4, 3)]
    rows += [row | {"name": "forward + backward", "share": 0.1}, row | {"name": "no", "failed": ""}]
    assert [r["name"] for r in counters.worst(rows, (1, 2))] == ["2", "3", "4"]


def test_a_sanitizer_that_refuses_is_no_failure(module):
    verdict = module("sanitizer").verdict
    assert verdict("ERROR SUMMARY: 0 errors", 0) == "passed"
    assert verdict("Device not supported", 1) == "refused"
    assert verdict("ERROR SUMMARY: 1 error", 9) == "failed"


def test_the_agreement_of_a_rival_is_measured(module):
    """An eager form in the place of another project's operator."""
    import torch

    fused, work = module("fused"), module("work")
    rival = next(r for r in fused.FUSED if r.case == "warp")

    def sampled(inputs, grid):
        axes = (torch.linspace(-1, 1, n) for n in inputs[0].shape[2:])
        identity = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
        return torch.nn.functional.grid_sample(
            inputs[0], identity + grid, padding_mode="border", align_corners=True
        )

    like = replace(rival, value=sampled)
    draw = work.Draw((1, 1, 30, 28, 32))
    assert fused.agreement(like, work.CASES["warp"], draw) > 0.9999
    wrong = replace(like, gradient=lambda gradient: gradient.movedim(-1, 1))
    assert fused.agreement(wrong, work.CASES["warp"], draw) < 0.9


def shown(mark):
    text = (ROOT / "docs" / "cuda.md").read_text()
    return text.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0].strip()


def test_the_page_shows_what_is_kept(module):
    page = module("page")
    for mark, text in page.sections(*page.read()).items():
        assert shown(mark) == text.strip(), f"{mark}: python bench/gpu/page.py"


def test_a_run_fills_the_tables(module, dry_run, monkeypatch):
    page, shapes = module("page"), module("shapes")
    measured = json.loads((dry_run[0] / "results.json").read_text())
    small = {"images": shapes.DRY_IMAGE, "volume": shapes.DRY_VOLUME}
    monkeypatch.setattr(page, "SHAPES", small)
    found = page.sections(measured, *page.read()[1:])
    assert page.NOT_YET not in "".join(found.values())
    for line in filter(None, found["aims"].splitlines()):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) in (4, 5) and cells[3] != "-"
    assert "| warp_backward | 2 x 12 x 10 | float32 |" in found["kernels"]
    assert "| value_and_gradient, default |" in found["calls"]
    assert "lunet, 2 x 16²" in found["training"] and "drawing" in found["training"]
    assert "best eager" in found["rivals"]


def test_without_any_measurement_the_aims_stand(module):
    page = module("page")
    _, older, _, wanted, _ = page.read()
    found = page.sections(None, older, [], wanted, [])
    assert "| 83% | - | - |" in found["aims"] and "| +25 | - | - |" in found["aims"]
    assert found["calls"] == page.NOT_YET


def test_a_prediction_is_the_larger_of_traffic_and_instructions(module):
    page = module("page")
    card = {"multiprocessors": 100, "gigahertz": 1.0, "terabytes_a_second": 4.0, "issued": 0.5}
    voxels = 16 * 2048**2
    aim = {"shape": "images", "made_of": ["op", "op_backward"]}
    kernel = {"bytes_a_voxel": 8.0, "instructions_a_voxel": 1.0}
    counts = [
        {"operator": "op", "kernels": [kernel]},
        {"operator": "op_backward", "kernels": [kernel, kernel | {"instructions_a_voxel": 320.0}]},
    ]
    expected = voxels * (16 / 4e12 + 10 / (100 * 4 * 1e9 * 0.5)) * 1e6
    assert page.predicted(aim, counts, card) == pytest.approx(expected)
    assert page.predicted(aim, counts[:1], card) is None
    counts[0]["kernels"] = [kernel | {"instructions_a_voxel": None}]  # not compiled
    assert page.predicted(aim, counts, card) is None


def test_kernels_of_a_step_are_counted(module):
    """A convolution's gradients are two kernels and that of its bias, a view is none."""
    import torch

    counts = module("step_counts")
    image, layer = torch.rand(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3, padding=1)
    found = counts.counted(lambda: (2 * layer(image)[None]).sum().backward())
    moved = 4 * (2 * 3 * 64 + 4 * 27 + 2 * 4 * 64)
    forward, bias, *rest = found
    assert forward == ("aten::convolution", moved, 2 * 27 * 2 * 4 * 64, False)
    assert bias.moved == 2 * 4 * 512
    product, total = rest[:2]
    assert (product.name, product.moved) == ("aten::mul", 2 * 4 * 512)
    assert (total.name, total.moved) == ("aten::sum", 4 * 512 + 4)
    weight, of_bias = (k for k in rest if "convolution_" in k.name or "bias" in k.name)
    assert (weight.moved, weight.operations) == forward[1:3] and of_bias.moved == 4 * 512
    card = counts.Card()
    assert card.seconds(bias, 3e-6) == 3e-6 and card.seconds(forward, 3e-6) == card.convolution
    assert card.seconds(counts.Kernel("", 4.2e12), 3e-6) == pytest.approx(1)


@pytest.mark.parametrize("given", [("lunet", (2, 1, 16, 16)), ("sn", (1, 1, 12, 12, 12))], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_has_few_kernels_beside_the_network_s(module, given, precision):
    """A kernel takes a GPU two microseconds or more, a whole step 900."""
    counts = module("step_counts")
    trainer, alone = (len(of(*given, precision)) for of in (counts.trainer, counts.alone))
    assert 0 < trainer - alone <= 50


def test_the_results_of_a_dry_run_are_not_kept(module, dry_run, monkeypatch):
    page = module("page")
    monkeypatch.setattr(sys, "argv", ["page.py", str(dry_run[0] / "results.json")])
    with pytest.raises(SystemExit, match="dry run"):
        page.main()
