"""Which mutants there are, and how a sample of them is drawn; test_detectors.py runs some."""

import shutil
import subprocess
from pathlib import Path

import pytest
from emulation import build, case_table, mutate

COMMITTER = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")


def git(root: Path, *arguments: str) -> str:
    command = ["git", *COMMITTER, "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "csrc" / "op").mkdir(parents=True)
    (tmp_path / "csrc" / "op" / "op.cu").write_text("__syncthreads();")
    return tmp_path


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
def test_the_seed_is_that_of_the_commit(tree):
    git(tree, "init", "--quiet")
    seeds = []
    for number in range(2):
        git(tree, "commit", "--quiet", "--allow-empty", "--message", str(number))
        seeds.append(mutate.seed_of(tree))
        assert seeds[-1] == int(git(tree, "rev-parse", "HEAD")[:8], 16)
        assert mutate.seed_of(tree) == seeds[-1]
    assert seeds[0] != seeds[1]


def test_without_git_the_seed_is_that_of_the_sources(tree):
    first = mutate.seed_of(tree)
    assert mutate.seed_of(tree) == first
    (tree / "csrc" / "op" / "op.cu").write_text("__threadfence();")
    assert mutate.seed_of(tree) != first


@pytest.mark.parametrize("word", ["__syncthreads()", "__threadfence()", "inside(", "clamped("])
def test_every_kind_of_fault_is_found_in_the_kernels(word):
    """A rename that hides a barrier, a fence or a bound check from the patterns fails here."""
    found = [(mutate.CSRC / m.path).read_text()[m.start : m.end] for m in mutate.mutants()]
    assert any(text.startswith(word) for text in found)


def test_what_kills_a_mutant_are_its_cases():
    """Not that a case is unknown, or that the library lacks what an operator calls."""
    for operator, names in mutate.CASES.items():
        assert {case_table.CASES[name].operator for name in names} == {operator}
    built = build.sources(mutate.CSRC, ("registration_objective",))
    called = {
        "warp",
        "deformation_energy",
        "correlation",
        "local_correlation",
        "parallel_level_sets",
    }
    assert called < {path.parent.name for path in built}
    assert {p.parent.name for p in build.sources(mutate.CSRC, ("warp",))} == {"warp"}
