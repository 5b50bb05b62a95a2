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
    code = {"instructions": 900, "loop": 700}
    rows = [
        compiled(**code),
        compiled(architecture="75", STACK=8, LOCAL=16, **code),
        compiled(kernel="op/other", **code),
    ]
    path = tmp_path / "table.tsv"
    cuda_code.write_resources(rows, path, "13.0")
    assert path.read_text().splitlines() == [
        "kernel, nvcc 13.0\tsm_75\tsm_90",
        "op/kernel<float, 2>\t40/24/200/900/700\t40/0/200/900/700",
        "op/other\t\t40/0/200/900/700",
    ]
    assert cuda_code.read_resources(path) == cuda_code.costs(rows)
    assert cuda_code.compiler_of(path) == "13.0"


def test_an_older_table_has_no_instructions(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("kernel\tsm_90\nop/k\t40/0/200\n")
    assert cuda_code.read_resources(path) == {"op/k": {"90": cuda_code.Cost(40, 0, 200)}}
    assert cuda_code.compiler_of(path) is None


def test_a_kernel_that_grows_or_is_not_in_the_table_breaks_a_gate():
    cost = cuda_code.Cost(40, 0, 200, 1000, 600)
    kept = {"op/k": {"80": cost, "90": cost}}
    assert cuda_code.grown(kept, kept) == []
    longer = {"op/k": {"80": cost._replace(instructions=1050), "90": cost._replace(loop=640)}}
    assert cuda_code.grown(kept, longer) == [
        "op/k (sm_90): 600 -> 640 instructions of its loop, 6.7% more, 5% allowed"
    ]
    assert cuda_code.grown(kept, {"op/new": {"90": cost}}) == [
        "op/new (sm_90): is not in the table"
    ]
    # An architecture that the table was not made for, and a table without instructions.
    assert cuda_code.grown(kept, {"op/k": {"103": cost._replace(loop=900)}}) == []
    without = {"op/k": {"90": cost.without_code()}}
    assert cuda_code.grown(without, {"op/k": {"90": cost}}) == []


def test_the_check_says_what_to_type(tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.tsv"
    monkeypatch.setattr(cuda_cost, "RESOURCES", table)
    cuda_code.write_resources([compiled(instructions=900, loop=700)], table, "13.0")
    now = [compiled(instructions=1000, loop=700)]
    first, last = cuda_cost.longer_than_kept(now, "13.0")
    assert first == "op/kernel<float, 2> (sm_90): 900 -> 1000 instructions, 11.1% more, 5% allowed"
    assert last.startswith("python bench/cuda_cost.py --write edits")
    assert cuda_cost.longer_than_kept(now, "12.9") == []
    assert "skipped, the table is of nvcc 13.0, this is 12.9" in capsys.readouterr().out
    assert cuda_cost.longer_than_kept([], "none") == []


# A loop over tiles (0x0010 to 0x0070) with one over rows in it (0x0020 to 0x0050).
CODE = """_Zkernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0030*/              @!P0 LDG.E R6, desc[UR4][R2.64] ;
        /*0040*/                   FADD R4, R4, R6 ;
        /*0050*/               @P1 BRA 0x20 ;
        /*0060*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0070*/               @P2 BRA 0x10 ;
        /*0080*/                   EXIT ;
        /*0090*/                   BRA 0x90;
        /*00a0*/                   NOP;
"""


def test_loops_are_found_in_the_machine_code():
    assert cuda_code._measured(CODE) == {
        "instructions": 10,
        "loop": 7,
        "inner_loop": 4,
        "inner_loads": 12,
    }


def test_instructions_a_voxel_are_those_of_the_right_instance():
    def row(kernel, inner):
        return compiled(kernel=kernel) | {"inner_loop": inner, "inner_loads": 8}

    rows = [row("op/kernel<float, false, 2>", 1000), row("op/kernel<float, true, 2>", 80)]
    launched = {"kernel": "op/kernel<float, true, 2>", "loads_a_voxel": 20.0}
    assert cuda_cost.instructions_a_voxel(launched, rows) == 200.0
    other = {"kernel": "op/other", "loads_a_voxel": 1.0}
    assert cuda_cost.instructions_a_voxel(other, rows) is None


def test_an_instance_has_the_name_of_the_compiled_one():
    mangled = "N9emulation8InstanceIXadL_ZN7diffreg4warp12_GLOBAL__N_16kernelILi2EfEEvPT0_EEEE"
    assert cuda_cost.instance(mangled) == "warp/kernel<2, float>"


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
    assert [k for k, found in kernels.items() if any(c.spilled for c in found.values())] == []


def test_the_page_and_the_table_are_of_the_same_build():
    page = (ROOT / "docs" / "cuda.md").read_text().split("<!-- cost -->")[1]
    lines = re.findall(r"^\| (\S.*[\w>]) \| (\d+) \| (\d+) \| \d+%", page, re.MULTILINE)
    kernels = cuda_code.read_resources(RESOURCES)
    assert len(lines) > 30
    for kernel, registers, shared in lines:
        assert kernels[kernel]["80"][:3] == (int(registers), 0, int(shared)), kernel
