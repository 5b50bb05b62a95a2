"""Where no core was built: the same operators in plain PyTorch, and said to be."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import PLAIN, uniform

from diffreg import ops
from diffreg.cli.info import description
from diffreg.ops import _checks, _core
from diffreg.ops._gpus import Machine
from diffreg.system import atomic

ROOT = Path(__file__).parents[1]
SCHEMAS = ast.literal_eval(f"[{(ROOT / 'diffreg/ops/schemas.inc').read_text()}]")


def python(code, folder=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "DIFFREG_CPU"}
        | {"PYTHONPATH": str(folder)}
        | environment,
    )


@pytest.fixture(scope="module")
def without_core(tmp_path_factory):
    """The package as it is installed on a Mac."""
    folder = tmp_path_factory.mktemp("plain")
    leave_out = shutil.ignore_patterns("*.so", "__pycache__", "heads", "pretrained")
    shutil.copytree(ROOT / "diffreg", folder / "diffreg", ignore=leave_out)
    return folder


SAYS = """
import torch
from diffreg import ops
from diffreg.ops._core import build_info
import diffreg.registration
print(build_info()["compiler"], "/", build_info()["cpu_variant"])
print(ops.warp(torch.ones(1, 1, 4, 5), torch.zeros(1, 2, 4, 5)).sum().item())
"""


def test_without_a_core_it_is_said_once_how_slow_and_how_to_build(without_core):
    run = python(SAYS, without_core)
    assert run.stdout.splitlines() == ["no compiled core / none, plain PyTorch", "20.0"], run.stderr
    (warning,) = [line for line in run.stderr.splitlines() if "Warning" in line]
    assert "times slower" in warning and "pip install --no-build-isolation ." in warning


def test_who_asks_for_plain_pytorch_is_not_warned():
    run = python(SAYS, DIFFREG_CPU="none")
    assert run.returncode == 0 and run.stderr == ""
    assert run.stdout.startswith("no compiled core")


def test_a_part_of_a_core_is_no_reason_to_be_slow(without_core, tmp_path):
    """A broken build is an error, not plain PyTorch."""
    shutil.copytree(without_core / "diffreg", tmp_path / "diffreg")
    (tmp_path / "diffreg/_cpu_baseline.so").touch()
    run = python("import diffreg.ops", tmp_path)
    assert run.returncode == 1
    assert "ImportError: diffreg's compiled core does not load" in run.stderr.splitlines()[-1]


def test_the_schemas_are_those_of_the_loaded_core():
    for schema in SCHEMAS:
        name = schema.partition("(")[0]
        loaded = getattr(torch.ops.diffreg, name).default._schema
        assert str(loaded) == str(torch._C.parse_schema(f"diffreg::{schema}"))


def test_gpus_are_of_use_without_a_core():
    core = _core._not_built() | {"cpu_variant": _core.PLAIN}
    machine = Machine([("NVIDIA H200", 90)], 13000, "13.0")
    assert description(machine, core)[-1] == "GPU 0: NVIDIA H200 (sm_90), runs plain PyTorch"


UNKNOWN = """
import torch
from diffreg import ops
for bad in (torch.nan, torch.inf, -torch.inf):
    for side in (0, 1):
        images = torch.rand(2, 1, 1, 6, 7)
        images[side, 0, 0, 2, 3] = bad
        print(ops.mutual_information(*images, bins=5).isnan().item())
"""


def test_an_image_that_is_not_finite_has_no_information():
    """Not an index out of its histogram."""
    run = python(UNKNOWN, DIFFREG_CPU="none")
    assert run.stdout.split() == ["True"] * 6, run.stderr


# Devices without float64


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.operator)
@pytest.mark.parametrize("size", [(24, 31), (9, 12, 11)], ids=str)
def test_without_float64_a_reference_is_the_operator_to_a_thousandth(case, size, monkeypatch):
    inputs = case.inputs(2, 1, size, torch.float32)
    expected = case(*(tensor.double() for tensor in inputs))
    monkeypatch.setattr(_checks, "WITHOUT_DOUBLE", ("cpu",))
    found = case.reference(*inputs)
    assert all(value.dtype == torch.float32 for value in found)
    for value, wanted in zip(found, expected, strict=True):
        assert (value - wanted).abs().max() <= 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.operator)
@pytest.mark.parametrize("size", [(24, 31), (9, 12, 11)], ids=str)
def test_without_float64_so_are_gradients(case, size, monkeypatch):
    def gradients(dtype):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in case.inputs(2, 1, size, dtype)]
        values = [value for value in case.reference(*inputs) if value.requires_grad]
        return torch.autograd.grad(sum(v.sum() for v in values), inputs, allow_unused=True)

    expected = gradients(torch.float64)
    monkeypatch.setattr(_checks, "WITHOUT_DOUBLE", ("cpu",))
    for found, wanted in zip(gradients(torch.float32), expected, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or found.dtype == torch.float32
        assert found is None or (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_without_float64_no_large_mean_cancels(monkeypatch):
    """Textures of a hundredth on a mean of 100: about 0 their squares would be rounding."""
    warped, fixed = (100 + 0.01 * uniform((1, 1, 12, 13), torch.float64, k) for k in (1, 2))
    expected = ops.local_correlation_reference(warped, fixed, 5)
    monkeypatch.setattr(_checks, "WITHOUT_DOUBLE", ("cpu",))
    found = ops.local_correlation_reference(warped.float(), fixed.float(), 5)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=0)


# Other systems


def test_where_processes_are_not_listed_no_file_of_theirs_is_removed(tmp_path, monkeypatch):
    """A Mac has no /proc: every process looked dead there."""
    (tmp_path / f".999999999-{atomic._place()}-whole.npz").touch()
    monkeypatch.setattr(atomic, "PROCESSES", tmp_path / "nowhere")
    atomic.remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(atomic, "PROCESSES", Path("/proc"))
    atomic.remove_leftovers(tmp_path)
    assert not any(tmp_path.iterdir())


# The contract


def in_plain_pytorch(*what):
    """The last line of tests in a process without a core; what is the core's own is left out: its
    bits, its allocations, and what guards its memory."""
    marks = ["-m", "not core and not slow and not long"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *marks, *what],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "DIFFREG_CPU": "none"},
    )
    assert run.returncode == 0, run.stdout[-6000:]
    return run.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_contract_of_the_operators_holds_in_plain_pytorch():
    """Without the sizes, layouts and options that the next one has."""
    chosen = "not is_its_reference and not empty_inputs and not compiled and not layout"
    compiled = "dynamic_shapes and images and (warp or local_correlation or objective)"
    chosen = f"({chosen}) or ({compiled})"
    last = in_plain_pytorch("tests/ops/test_contract.py", "-k", chosen)
    assert int(re.search(r"(\d+) passed", last)[1]) > 800, last


@pytest.mark.long
def test_all_that_is_known_of_the_operators_holds_in_plain_pytorch():
    last = in_plain_pytorch("tests/ops")
    assert int(re.search(r"(\d+) passed", last)[1]) > 4500, last
