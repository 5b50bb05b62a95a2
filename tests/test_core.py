"""Loading the compiled library: what it says of itself, and what it says when it does not fit."""

import subprocess
import sys

import pytest

import diffreg
from diffreg.ops import _core


def test_build_info_names_what_the_core_was_built_from():
    info = _core.build_info()
    assert info["version"] == diffreg.__version__
    assert info["compiler"].startswith("GNU") or info["compiler"].startswith("Clang")
    assert info["cpu_variant"] == "baseline"
    architectures = info["cuda_architectures"]
    assert architectures == "none" or architectures.split()[-1].startswith("ptx")
    assert tuple(map(int, info["oldest_torch"].split("."))) >= (2, 11)


def test_a_core_of_another_version_is_one_clear_import_error(monkeypatch):
    monkeypatch.setattr(_core, "__version__", "99.0")
    with pytest.raises(ImportError, match=r"core is of version .*package of version 99\.0.*pip"):
        _core.build_info()


def test_a_missing_core_is_one_clear_import_error():
    code = "import sys; sys.modules['diffreg._C'] = None; import diffreg.ops"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: diffreg's compiled core does not load under torch")
    assert "pip install --no-build-isolation" in last


def test_the_operators_import_without_the_extras():
    code = (
        "import sys\n"
        "extras = 'nibabel', 'matplotlib', 'PIL', 'tqdm', 'scipy'\n"
        "sys.modules.update(dict.fromkeys(extras))\n"
        "import diffreg.ops, diffreg.fields, diffreg.losses, diffreg.variational, diffreg.models"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
