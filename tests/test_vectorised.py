"""The hot loops are vector code: one that falls out of it costs twice and more, and nobody sees it.

Each operator's driver is compiled once more for AVX-512, with the flags of the build and GCC's own
report. Lines of csrc that begin such a loop end in `// hot: NAME`.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where pip puts cmake and ninja
HOT = re.compile(r"// hot: (\w+)$")

# Of an operator's driver, how many instances of its hot loops are vectorised: an option's value, a
# dtype, a number of axes makes each. Fewer are an error; the others are rare ones.
INSTANCES = {
    "warp": {"voxels": 60, "parts": 24},
    "affine_warp": {"voxels": 100, "sums": 8, "onto": 8},
    "jacobian_determinant": {"row": 28},
    "deformation_energy": {"row": 24, "sums": 36, "across": 4, "along": 4},
    "parallel_level_sets": {"sums": 20},
    "local_correlation": {"sums": 20, "moments": 16, "box": 20},
    "correlation": {"sums": 14},
    "gradient_scale": {"sums": 12},
}


def hot_loops():
    """Of every name, "FILE:LINE:" as GCC's report has it."""
    return {
        match[1]: f"{path.name}:{number}:"
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := HOT.search(line))
    }


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Of the AVX-512 variant: every driver's compiler command, by the driver's path."""
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"{tool} is not there to compile with")
    folder = tmp_path_factory.mktemp("configured")
    configure = [
        *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"),
        *("-DDIFFREG_CUDA=off", f"-DDIFFREG_TORCH_DIR={Path(torch.__file__).parent}"),
    ]
    environment = {**os.environ, "PATH": PATH}
    subprocess.run(configure, check=True, capture_output=True, env=environment)
    listed = json.loads((folder / "compile_commands.json").read_text())
    found = {c["file"]: c for c in listed if "_cpu_avx512.dir" in c["command"]}
    if not found:
        pytest.skip("there is no AVX-512 on this kind of processor")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("operator", INSTANCES)
def test_hot_loops_are_vectorised(operator, commands, tmp_path):
    entry = commands[str(ROOT / "csrc" / operator / f"{operator}_cpu.cpp")]
    report = tmp_path / "report.txt"
    command = shlex.split(entry["command"])
    command[command.index("-o") + 1] = str(tmp_path / "driver.o")
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in version:
        pytest.skip(f"{command[0]} is not GCC, whose report is read")
    command.append(f"-fopt-info-vec-optimized={report}")
    subprocess.run(command, check=True, cwd=entry["directory"])
    told = [line for line in report.read_text().splitlines() if "64 byte vectors" in line]
    loops = hot_loops()
    found = {name: sum(f"/{loops[name]}" in line for line in told) for name in INSTANCES[operator]}
    fewer = {name: n for name, n in found.items() if n < INSTANCES[operator][name]}
    assert not fewer, f"no vector code any more: {fewer}, expected {INSTANCES[operator]}"


def test_every_hot_loop_is_looked_at():
    assert set(hot_loops()) == {name for loops in INSTANCES.values() for name in loops}
