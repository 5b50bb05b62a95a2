"""What decides whether CUDA kernels are built, and what the set-up says while it works."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where pip puts cmake
UNSET = ("CUDA_HOME", "CXX", "DIFFREG_CUDA", "DIFFREG_CUDA_ARCHITECTURES")


@pytest.fixture
def nvcc(tmp_path):
    """A compiler by name alone: it is looked for, not called."""
    path = tmp_path / "toolkit" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def chosen(tmp_path, nvcc):
    """chosen(DIFFREG_CUDA="auto"): nvcc, architectures and its host compiler's flags of a build,
    always in one folder."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(ask LANGUAGES NONE)\n"
        f"include({ROOT}/cmake/cuda.cmake)\n"
        "set(CMAKE_CXX_COMPILER /opt/g++)\ndiffreg_host_compiler(host)\n"
        'message("nvcc=${DIFFREG_NVCC} for ${DIFFREG_CUDA_ARCHITECTURES} by ${host}")\n'
    )

    def configure(torch_cuda="", **environment):
        inherited = {name: value for name, value in os.environ.items() if name not in UNSET}
        found = {"PATH": f"{nvcc.parent}:{PATH}"}  # before any other
        done = subprocess.run(
            ["cmake", f"-DDIFFREG_TORCH_CUDA={torch_cuda}", "-S", tmp_path, "-B", tmp_path / "b"],
            capture_output=True,
            text=True,
            env=inherited | found | environment,
        )
        if done.returncode:
            raise ValueError(done.stderr)
        line = next(line for line in done.stderr.splitlines() if line.startswith("nvcc="))
        return re.split(" for | by ", line.removeprefix("nvcc="))

    return configure


def test_a_cpu_build_of_torch_gets_no_kernels(chosen):
    assert chosen()[0] == ""


def test_a_cuda_build_of_torch_gets_them_where_an_nvcc_is(chosen, nvcc):
    assert chosen("13.0")[0] == str(nvcc)
    assert chosen("13.0", DIFFREG_CUDA="off")[0] == ""


@pytest.mark.parametrize("torch_cuda", ["", "13.0"])
def test_who_asks_for_them_gets_them(chosen, nvcc, torch_cuda):
    for asked in ("auto", str(nvcc)):
        assert chosen(torch_cuda, DIFFREG_CUDA=asked)[0] == str(nvcc)


def test_a_compiler_that_is_not_there_is_named(chosen, tmp_path):
    for wrong in ("/no/nvcc", "yes", str(tmp_path)):
        with pytest.raises(ValueError, match=f"path of an nvcc, got\\s+{wrong}"):
            chosen(DIFFREG_CUDA=wrong)


def test_architectures_are_five_or_those_asked_for(chosen):
    assert chosen()[1] == "75 80 90 100 120"
    assert chosen(DIFFREG_CUDA_ARCHITECTURES="80 90")[1] == "80 90"


def test_a_build_folder_goes_by_what_is_asked_for_now(chosen, nvcc):
    settings = {"DIFFREG_CUDA": "auto", "DIFFREG_CUDA_ARCHITECTURES": "90"}
    for _ in range(2):
        assert chosen(**settings)[:2] == [str(nvcc), "90"]
        assert chosen()[:2] == ["", "75 80 90 100 120"]


def test_a_compiler_that_was_chosen_is_nvcc_s_too(chosen):
    assert chosen()[2] == chosen(CXX="")[2] == ""
    assert chosen(CXX="/opt/g++")[2] == "-ccbin;/opt/g++"


def dry_run(target, folder, **environment):
    """What make would do in a folder with a .venv of nothing, and the setting that it hands on."""
    makefile = folder / "Makefile"
    makefile.write_text(f"include {ROOT}/Makefile\nsetting:\n\t@echo $(DIFFREG_CUDA)\n")
    inherited = {name: value for name, value in os.environ.items() if name not in UNSET}
    done = subprocess.run(
        ["make", "-s", target],
        capture_output=True,
        text=True,
        cwd=folder,
        env=inherited | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_venv_keeps_what_make_cuda_asked_for(tmp_path):
    assert dry_run("setting", tmp_path) == ""
    assert dry_run("setting", tmp_path, DIFFREG_CUDA="/opt/nvcc") == "/opt/nvcc"
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".cuda").touch()
    assert dry_run("setting", tmp_path) == "auto"
    assert dry_run("setting", tmp_path, DIFFREG_CUDA="off") == "off"


@pytest.mark.parametrize(("setting", "asked"), [("off", False), ("auto", True), (None, True)])
def test_wheels_without_kernels_fetch_no_compiler_of_theirs(tmp_path, setting, asked):
    inherited = {name: value for name, value in os.environ.items() if name not in UNSET}
    chosen = {"DIFFREG_CUDA": setting} if setting else {}
    command = ["make", "-n", "wheels", f"VENV={tmp_path}/none"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=inherited | chosen
    )
    assert ("NVIDIA's compiler" in done.stdout) == asked


@pytest.mark.parametrize(
    ("target", "asked"),
    [("demo", False), ("cuda", False), ("site", False), ("test", True), ("bench", True)],
)
def test_python_s_headers_are_asked_for_where_torch_compiles(tmp_path, target, asked):
    command = ["make", "-n", target, f"VENV={tmp_path}/none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("Python.h" in done.stdout) == asked


def test_a_python_without_headers_is_said(tmp_path):
    python = tmp_path / "python"
    for status, said in ((0, ""), (1, "diffreg: error: Python's headers are missing")):
        python.write_text(f"#!/bin/sh\nexit {status}\n")
        python.chmod(0o755)
        command = ["make", "-s", "headers", f"VENV={tmp_path}/none", f"PYTHON={python}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 * status and done.stdout.startswith(said)


def alive(*command, seconds="0.2"):
    return subprocess.Popen(
        [ROOT / ".ci" / "alive", "waiting, a second", *command],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"ALIVE_SECONDS": seconds},
    )


def test_a_long_step_says_what_it_does_and_that_it_lives():
    said = alive("sh", "-c", "sleep 1; echo made").communicate(timeout=30)[0].splitlines()
    assert said[0] == "waiting, a second" and "made" in said
    assert sum(line.startswith("  ... ") for line in said) >= 2
    assert said[-1].startswith("  done in ")


def test_a_step_that_fails_keeps_its_status():
    process = alive("sh", "-c", "exit 3")
    assert "done" not in process.communicate(timeout=30)[0] and process.returncode == 3


@pytest.mark.alone
def test_nothing_beats_on_after_a_step_is_stopped():
    process = alive("sleep", "1")
    time.sleep(0.5)
    process.terminate()
    started = time.monotonic()
    process.communicate(timeout=30)  # until nobody has the pipe any more
    assert process.returncode == 143 and time.monotonic() - started < 3


@pytest.mark.parametrize("strict", [False, True])
def test_warnings_are_errors_for_developers_alone(tmp_path, strict):
    """Another compiler warns of other things: nobody's installation should end at that."""
    said = ["-DDIFFREG_STRICT=ON"] if strict else []
    subprocess.run(
        [
            *("cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DDIFFREG_CUDA=off", *said),
            f"-DDIFFREG_TORCH_DIR={Path(torch.__file__).parent}",
        ],
        env={"PATH": PATH},
        check=True,
        capture_output=True,
    )
    assert ("-Werror" in (tmp_path / "build.ninja").read_text()) == strict
