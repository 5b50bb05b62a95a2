"""What ships: sdist and package data; and what a build says that lacks something."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from emulation.compiled import cmake, settings

ROOT = Path(__file__).parents[1]
BUILT = ("*.so", "*.pyc", "__pycache__", "*.egg-info")


def shipped(folder):
    """The files below a folder, but for what a build leaves there."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    return {p for p in files if not any(p.match(b) or p.parent.match(b) for b in BUILT)}


def backend(folder, code, **environment):
    """Runs a line of code with setuptools' hooks, as pip does."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; {code}"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a build reads: building writes into its folder."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("diffreg", "csrc", "cmake"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*BUILT))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    """The sdist, unpacked elsewhere."""
    out = tmp_path_factory.mktemp("sdist")
    done = backend(tree, f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})")
    assert done.returncode == 0, done.stderr
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(out, filter="data")
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


def test_an_sdist_holds_what_the_build_needs(tree, sdist):
    needed = {path for name in ("diffreg", "csrc", "cmake") for path in shipped(tree / name)}
    needed |= {tree / name for name in ("CMakeLists.txt", "setup.py", "pyproject.toml")}
    needed |= {tree / name for name in ("README.md", "LICENSE", "NOTICE", "MANIFEST.in")}
    assert len(needed) > 150
    assert {
        str(p.relative_to(tree)) for p in needed if not (sdist / p.relative_to(tree)).exists()
    } == set()


def test_an_sdist_holds_no_more(tree, sdist):
    beside = {
        str(p.relative_to(sdist))
        for p in shipped(sdist)
        if not (tree / p.relative_to(sdist)).exists()
    }
    assert beside == {"PKG-INFO", "setup.cfg"}
    assert not (sdist / "tests").exists()


def test_what_an_sdist_holds_can_be_configured(sdist, tmp_path):
    """CMake finds a source of every operator for every CPU variant."""
    cmake(*settings(sdist), "-B", tmp_path, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    compiled = json.loads((tmp_path / "compile_commands.json").read_text())
    assert {entry["file"] for entry in compiled} == {
        *map(str, sdist.glob("csrc/*/*_cpu.cpp")),
        str(sdist / "csrc" / "core.cpp"),
    }


@pytest.mark.long
def test_an_sdist_unpacked_elsewhere_builds_and_runs(sdist, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    done = subprocess.run([*pip, "--target", site, sdist], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    code = (
        "import diffreg, torch; from diffreg.demo.measures import HEADS\n"
        "from diffreg.training.pretrained import load_pretrained\n"
        "load_pretrained('lunet-cardiac-mr')\n"
        "print(diffreg.__file__, len(list(HEADS.iterdir())))\n"
        "print(diffreg.ops.warp(torch.ones(1, 1, 4, 5), torch.zeros(1, 2, 4, 5)).sum().item())"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    heads = len(list((ROOT / "diffreg/demo/heads").iterdir()))
    assert ran.stdout.split() == [f"{site}/diffreg/__init__.py", f"{heads}", "20.0"], ran.stderr


def test_the_package_data_are_installed(tree, tmp_path):
    """As a wheel holds them: everything below diffreg/."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tree,
    )
    assert done.returncode == 0, done.stderr
    found = {str(p.relative_to(tmp_path)) for p in shipped(tmp_path)}
    assert found == {str(p.relative_to(tree)) for p in shipped(tree / "diffreg")}
    for name in ("py.typed", "benchmark/schema.json", "demo/heads/NOTICE.md"):
        assert f"diffreg/{name}" in found
    assert "diffreg/training/pretrained/lunet-cardiac-mr.pt" in found


NO_CORE = {
    "asked for": ("", {"DIFFREG_BUILD": "off"}),
    "ARM": ("import platform; platform.machine = lambda: 'aarch64'; ", {}),
}


@pytest.mark.parametrize("why", NO_CORE)
def test_where_no_core_is_built_the_package_is_python_and_needs_no_torch(tree, tmp_path, why):
    prepare, environment = NO_CORE[why]
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = backend(tree, f"{prepare}sys.modules['torch'] = None; {code}", **environment)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "diffreg/ops/schemas.inc" in names
    assert not [name for name in names if name.endswith(".so")]


def test_a_wrong_choice_of_a_core_is_one_line(tree):
    done = backend(tree, HOOK.format("wheel", "."), DIFFREG_BUILD="no")
    assert done.stderr.splitlines() == ["DIFFREG_BUILD must be auto, on or off, got no"]


HOOK = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_{}({!r})"


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_build_without_torch_says_what_to_type_and_nothing_else(tree, kind):
    """The first hook that pip calls once the environment stands, before any download."""
    done = backend(tree, "sys.modules['torch'] = None; " + HOOK.format(kind, "."))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    typed = line.removeprefix("diffreg's build finds no torch; type: ")
    assert typed.endswith(" && pip install --no-build-isolation .")
    # All that pyproject.toml asks for: without isolation nobody else brings it.
    (requires,) = re.findall(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    wanted = [*re.findall(r'"(.+?)"', requires), "torch>=2.11"]
    named = typed.partition("install ")[2].partition(" &&")[0].replace("'", "").split()
    assert sorted(named) == sorted(wanted)


def test_a_build_without_a_tool_says_so_too(tree):
    code = "import shutil; shutil.which = lambda *_, **__: None; " + HOOK.format("wheel", ".")
    (line,) = backend(tree, code).stderr.splitlines()
    assert line.startswith("diffreg's build finds no cmake; type: pip install ")


def test_a_torch_that_is_too_old_is_said_to_be(tree):
    code = "import torch; torch.__version__ = '2.9.1'; " + HOOK.format("wheel", ".")
    (line,) = backend(tree, code).stderr.splitlines()
    assert line.startswith("diffreg's build finds torch 2.9.1, too old; type: pip install")


def test_a_build_that_has_all_gives_metadata(tree, tmp_path):
    done = backend(tree, HOOK.format("wheel", str(tmp_path)))
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    text = metadata.read_text()
    assert "License-File: NOTICE" in text and "Classifier: Typing :: Typed" in text
    authors = re.search(r"^authors:\n  - name: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert f"Author: {authors[1]}" in text
