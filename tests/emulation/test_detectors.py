"""Memory, races, orders and divergence of the kernels; and that each detector detects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import build, case_table, compiled

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PLANTED = HERE / "planted"


def run(flavour: str, *arguments: str) -> subprocess.CompletedProcess:
    build.build(flavour)
    command = [sys.executable, str(HERE / "run.py"), "--flavour", flavour, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=build.environment(flavour))


@pytest.mark.parametrize("flavour", ["plain", "address", "race"])
def test_nothing_is_reported(flavour):
    # The race detector is slow: one case an operator, and warp's other kernel.
    cases = [*case_table.PLAIN, "warp-nearest-zeros"] if flavour == "race" else case_table.CASES
    ran = run(flavour, "--case", *cases)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-6000:]
    assert "nothing reported" in ran.stdout


@pytest.mark.parametrize(
    ("fault", "flavour", "message"),
    [
        ("none", "plain", "same bits"),
        ("none", "address", "same bits"),
        ("none", "race", "same bits"),
        ("global_overrun", "address", "heap-buffer-overflow"),
        ("shared_overrun", "address", "out of bounds|use-after-poison"),
        ("index_overflow", "address", "signed integer overflow"),
        ("misaligned_load", "plain", "not aligned"),
        ("misaligned_load", "address", "not aligned"),
        ("missing_barrier", "race", "data race"),
        ("blocks_race", "race", "data race"),
        ("missing_fence", "plain", "without a fence between"),
        ("missing_fence_behind", "plain", "without a fence between"),
        ("missing_fence", "address", "without a fence between"),
        ("divergent_barrier", "plain", "barrier divergence"),
        ("divergent_shuffle", "plain", "barrier divergence"),
        ("order_dependent", "plain", "differs"),
    ],
)
def test_a_planted_fault_is_caught(fault, flavour, message, tmp_path):
    program = tmp_path / "planted"
    sanitize = build.SANITIZE[flavour]
    objects = [build.compile_one(build.SHIM / "emulation.cpp", build.ROOT / "csrc", flavour)]
    command = [build.COMPILER, *build.flags(flavour), *sanitize, f"-DFAULT_{fault}"]
    command += ["-I", str(build.ROOT / "csrc"), "-x", "c++", str(PLANTED / "faults.cu")]
    command += ["-x", "none", *map(str, objects), "-o", str(program)]
    subprocess.run(command, check=True)
    environment = {k: v for k, v in build.environment(flavour).items() if k != "LD_PRELOAD"}
    ran = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, **environment}
    )
    said = ran.stdout + ran.stderr
    assert any(m in said for m in message.split("|")), said[-3000:]
    assert (ran.returncode == 0) == (fault == "none")


def test_mutants_are_killed():
    """Three, drawn by the commit; `make mutants` takes all."""
    command = [sys.executable, str(HERE / "mutate.py"), "--sample", "3"]
    ran = subprocess.run(command, capture_output=True, text=True)
    print(ran.stdout)  # the seed, first
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]


def test_the_kernels_compile_and_costs_stay_within_their_gates():
    """By every architecture's compiler, warnings being errors; traffic without an nvcc too."""
    site = compiled.package()
    command = [sys.executable, str(build.ROOT / "bench" / "cuda_cost.py"), "--check"]
    environment = os.environ | ({"PYTHONPATH": str(site)} if site else {})
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    if site is None:
        pytest.skip("traffic is within its gates; the kernels were not compiled: there is no nvcc")
    assert "this build has no CUDA kernels" not in ran.stdout
    for line in ran.stdout.splitlines():
        if ": skipped, " in line:  # no cuobjdump or nvdisasm, or a table of another compiler
            pytest.skip(f"the kernels compile, traffic is within its gates; {line}")
