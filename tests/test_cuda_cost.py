"""The tables of what the CUDA kernels need: written and read back, and in step with each other."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]
cuda_code = pytest.importorskip("cuda_code")
cuda_cost = pytest.importorskip("cuda_cost")

RESOURCES = ROOT / "bench" / "results" / "cuda_resources.tsv"


def compiled(**changed):
    row = {"kernel": "op/kernel<float, 2>", "architecture": "90"}
    return row | {"REG": 40, "STACK": 0, "SHARED": 200, "LOCAL": 0} | changed


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = [compiled(), compiled(architecture="75", STACK=8, LOCAL=16), compiled(kernel="op/other")]
    cuda_code.write_resources(rows, tmp_path / "table.tsv")
    assert (tmp_path / "table.tsv").read_text().splitlines() == [
        "kernel\tsm_75\tsm_90",
        "op/kernel<float, 2>\t40/24/200\t40/0/200",
        "op/other\t\t40/0/200",
    ]
    assert cuda_code.read_resources(tmp_path / "table.tsv") == {
        "op/kernel<float, 2>": {"75": (40, 24, 200), "90": (40, 0, 200)},
        "op/other": {"90": (40, 0, 200)},
    }


@pytest.mark.parametrize("kind", ["STACK", "LOCAL"])
def test_a_spill_breaks_a_gate(kind):
    assert cuda_cost.broken_gates([], [compiled()]) == []
    (gate,) = cuda_cost.broken_gates([], [compiled(**{kind: 8})])
    assert gate == "op/kernel<float, 2> (sm_90): 8 bytes of local memory"


def test_tables_are_not_written_without_kernels(monkeypatch):
    """Where torch is a CPU build the core is without them."""
    monkeypatch.setattr(cuda_cost._core, "build_info", lambda: {"cuda_architectures": "none"})
    monkeypatch.setattr(sys, "argv", ["cuda_cost.py", "--write"])
    monkeypatch.setattr(cuda_cost, "write_docs", lambda text: pytest.fail("the page is emptied"))
    with pytest.raises(SystemExit, match="would empty the tables"):
        cuda_cost.main()


def test_no_kernel_spills_in_the_table_that_is_kept():
    kernels = cuda_code.read_resources(RESOURCES)
    assert kernels
    assert [
        k for k, found in kernels.items() if any(spills for _, spills, _ in found.values())
    ] == []


def test_the_page_and_the_table_are_of_the_same_build():
    page = (ROOT / "docs" / "cuda.md").read_text().split("<!-- cost -->")[1]
    lines = re.findall(r"^\| (\S.*[\w>]) \| (\d+) \| (\d+) \| \d+%", page, re.MULTILINE)
    kernels = cuda_code.read_resources(RESOURCES)
    assert len(lines) > 30
    for kernel, registers, shared in lines:
        assert kernels[kernel]["80"] == (int(registers), 0, int(shared)), kernel
