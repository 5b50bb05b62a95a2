"""make release: what it refuses, what it changes, and that a dry run leaves the tree as it was."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("diffreg/__init__.py", "CITATION.cff", "CHANGELOG.md", ".ci/release.py")


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run = subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)
    return run.stdout.decode()


@pytest.fixture
def release(tmp_path, monkeypatch):
    """The script in a repository of the files that it changes; make writes down its words."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "dist").mkdir()
    (tmp_path / ".gitignore").write_text("dist/\n.venv*/\n__pycache__/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    spec = importlib.util.spec_from_file_location("release", tmp_path / ".ci/release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.made, module.made_by_make = [], module.make

    def make(target, *words):
        module.made.append((target, *words))
        if target.startswith("test-"):
            version = {"TORCH=torch==2.11.0": "2.11.0+a", "TORCH=torch": "7.0"}[words[0]]
            python = tmp_path / f".venv-{target.removeprefix('test-')}/bin/python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text(f"#!/bin/sh\necho {version}\n")
            python.chmod(0o755)

    monkeypatch.setattr(module, "make", make)
    return module


def run(release, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["release", *words])
    release.main()


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("1.2", "VERSION must be three numbers, as in 1.2.3, got '1.2'"),
        ("0.0.9", "VERSION must be above 0.1.0, got 0.0.9"),
    ],
)
def test_what_is_no_next_version_is_refused(release, version, why):
    assert release.refusal(version) == why


def test_a_tree_with_changes_is_refused(release, monkeypatch):
    (release.ROOT / "new.py").touch()
    with pytest.raises(SystemExit, match=r"release: the tree has changes; .*: new\.py"):
        run(release, monkeypatch, "9.0.0")
    assert release.made == []


def test_a_version_that_is_tagged_is_refused(release):
    git(release.ROOT, "tag", "v9.0.0")
    assert release.refusal("9.0.0") == "there is a tag v9.0.0"


def test_a_dry_run_tests_under_the_oldest_and_newest_torch_and_leaves_the_tree(
    release, monkeypatch, capsys
):
    run(release, monkeypatch, "9.0.0", "--dry")
    assert release.made == [
        ("wheels",),
        ("test-wheel", "TORCH=torch==2.11.0"),
        ("test-wheel", "TORCH=torch"),
        ("test-sdist", "TORCH=torch"),
    ]
    assert git(release.ROOT, "status", "--porcelain") == "" == git(release.ROOT, "tag")
    notes = (release.ROOT / "dist/NOTES-9.0.0.md").read_text()
    assert notes.startswith("# diffreg 9.0.0\n\n- ") and "## " not in notes
    tested = "Tested: the wheel under torch 2.11.0+a and 7.0, the sdist under 7.0."
    assert notes.endswith(f"\n\n{tested}\n")
    assert f"release: {tested}\n" in capsys.readouterr().out


def test_a_failure_is_a_line_and_leaves_the_tree_too(release, monkeypatch):
    (release.ROOT / "Makefile").write_text("wheels:\n\tfalse\n")
    git(release.ROOT, "add", "Makefile")
    git(release.ROOT, "commit", "-qm", "fails")
    monkeypatch.setattr(release, "make", release.made_by_make)
    with pytest.raises(SystemExit, match=r"^release: `make wheels` failed, as said above"):
        run(release, monkeypatch, "9.0.0")
    assert git(release.ROOT, "status", "--porcelain") == ""


def test_a_release_is_a_commit_and_a_tag(release, monkeypatch):
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b")
    run(release, monkeypatch, "9.0.0")
    assert git(release.ROOT, "tag", "--points-at", "HEAD") == "v9.0.0\n"
    for name, line in (
        ("diffreg/__init__.py", '__version__ = "9.0.0"'),
        (FILES[1], "version: 9.0.0"),
    ):
        assert line in (release.ROOT / name).read_text().splitlines()
    assert "\n## 9.0.0 (20" in (release.ROOT / "CHANGELOG.md").read_text()
