"""Loading the compiled library: what it says of itself, and what it says when it does not fit."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import diffreg
from diffreg.ops import _core

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))


def test_build_info_names_what_the_core_was_built_from():
    info = _core.build_info()
    assert info["version"] == diffreg.__version__
    assert info["compiler"].startswith("GNU") or info["compiler"].startswith("Clang")
    assert info["cpu_variant"] in info["cpu_variants"].split()
    architectures = info["cuda_architectures"]
    assert architectures == "none" or architectures.split()[-1].startswith("ptx")
    assert tuple(map(int, info["oldest_torch"].split("."))) >= (2, 11)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "DIFFREG_CPU"} | environment,
    )


TESTS = str(Path(__file__).parent)
LOADED = """
import sys
from diffreg.ops import _core
with open("/proc/self/maps") as maps:
    print(*sorted({word for word in maps.read().split() if "_cpu_" in word}))
print(_core.build_info()["cpu_variant"])
"""


@pytest.mark.slow
def test_every_variant_that_runs_here_is_loaded_alone_when_asked_for():
    variants = _core.build_info()["cpu_variants"].split()
    assert variants[0] == "baseline"
    for variant in variants:
        found = python(LOADED, DIFFREG_CPU=variant)
        libraries, named = found.stdout.splitlines()
        assert libraries.endswith(f"/_cpu_{variant}.so") and " " not in libraries
        assert named == variant
    assert python(LOADED).stdout.splitlines()[1] == variants[-1]


def test_an_unknown_variant_is_one_clear_import_error():
    run = python("import diffreg.ops", DIFFREG_CPU="sse9")
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith("ImportError: DIFFREG_CPU must be one of baseline")
    assert last.endswith("on this processor, or none, got sse9")


@pytest.mark.slow
def test_all_variants_give_the_same_bits():
    """Every operator, forward and backward, of images and volumes, on numbers whose sums round."""
    package = Path(diffreg.__file__).parent
    variants = _core.build_info()["cpu_variants"].split()
    built = [variant for variant in variants if (package / f"_cpu_{variant}.so").exists()]
    if len(built) < 2:
        pytest.skip(f"there is only one variant here, {built[0]}")
    bits = {
        variant: python("import bits; bits.main()", DIFFREG_CPU=variant, PYTHONPATH=TESTS)
        for variant in built
    }
    for variant, run in bits.items():
        assert run.returncode == 0, run.stderr
        assert run.stdout.splitlines() == bits[built[0]].stdout.splitlines(), variant


def test_a_core_of_another_version_is_one_clear_import_error(monkeypatch):
    monkeypatch.setattr(_core, "__version__", "99.0")
    with pytest.raises(ImportError, match=r"core is of version .*package of version 99\.0.*pip"):
        _core.build_info()


def test_the_operators_import_without_the_extras():
    code = (
        "import sys\n"
        "extras = 'nibabel', 'matplotlib', 'PIL', 'tqdm', 'scipy'\n"
        "sys.modules.update(dict.fromkeys(extras))\n"
        "import diffreg.ops, diffreg.fields, diffreg.losses, diffreg.models, diffreg.registration"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_the_docs_name_is_reached_from_diffreg_alone():
    """`import diffreg` imports no torch, and `diffreg.losses.PRESETS` needs no other import."""
    text = "".join(path.read_text("utf-8") for path in (ROOT / "README.md", *DOCS))
    found = re.findall(r"\bdiffreg\.([a-z_]+)\.(?:[a-z_]+\.)*[A-Za-z_]+", text)
    packages = {name for name in found if (ROOT / "diffreg" / name).is_dir()}
    assert {"data", "losses", "training"} <= packages
    code = (
        "import sys, diffreg\n"
        "assert 'torch' not in sys.modules and 'PRESETS' not in dir(diffreg)\n"
        "assert diffreg.losses.PRESETS\n"
        f"for name in {sorted(packages | {'fields', 'metrics', 'models', 'ops', 'transforms'})}:\n"
        "    assert getattr(diffreg, name).__name__ == f'diffreg.{name}' and name in dir(diffreg)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_waits_for_no_thread_that_it_does_not_have():
    """As multiprocessing.Pool makes them: OpenMP's threads are those of the parent."""
    before = torch.get_num_threads()
    moving, displacement = torch.rand(1, 1, 512, 512), torch.rand(1, 2, 512, 512)
    try:
        torch.set_num_threads(2)
        diffreg.ops.warp(moving, displacement)
        child = os.fork()
        if child == 0:
            diffreg.ops.warp(moving, displacement)
            (moving @ moving).exp_()
            os._exit(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 1
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("it waits for ever")
