"""The tests' own rules: what is slow is marked, and processes that share a machine do not clash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
INI = f"""
[pytest]
addopts = -p no:cacheprovider
filterwarnings = error
markers =
    slow
    long
pythonpath = {TESTS}
"""


@pytest.fixture
def run(tmp_path):
    """run(text, *options, longest=20): pytest's output on a test file beside our conftest.py."""
    (tmp_path / "pytest.ini").write_text(INI)

    def pytest_on(text, *options, longest=20):
        conftest = (TESTS / "conftest.py").read_text()
        (tmp_path / "conftest.py").write_text(
            conftest.replace("LONGEST = 20", f"LONGEST = {longest}")
        )
        (tmp_path / "test_it.py").write_text(text)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
        command = [sys.executable, "-m", "pytest", "-q", *options]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        return done.stdout

    return pytest_on


LONG = """
import pytest, time

def work():
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass

def test_unmarked():
    work()

@pytest.mark.slow
def test_slow():
    work()

@pytest.mark.long
def test_long():
    work()
"""


@pytest.mark.slow
def test_a_long_test_without_its_mark_fails(run):
    said = run(LONG, longest=0.3)
    assert "over 0.3 a test is marked slow or long" in said and "1 failed, 2 passed" in said


SHARED = """
import os, pytest, subprocess, sys, torch, warnings

@pytest.mark.parametrize("k", range(4))
def test_threads(k):
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"]) == 1

def test_warning():
    warnings.warn("old")
"""


TOGETHER = """
import os, pytest

@pytest.mark.parametrize("k", range(6))
def test_process(k):
    with open("processes", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


@pytest.mark.slow
def test_several_processes_have_one_thread_each_no_warnings_and_a_costly_fixture_once(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "test_demo.py").write_text(TOGETHER)
    assert "1 failed, 10 passed" in run(SHARED, "-n", "2")
    assert len(set((tmp_path / "processes").read_text().split())) == 1


BUILDING = """
import sys, time
from pathlib import Path
from emulation import build
folder = Path(sys.argv[1])
with build.alone(folder):
    with open(folder / "log", "a") as log:
        log.write("begun\\n"), log.flush()
        time.sleep(0.5)
        log.write("ended\\n")
"""


def test_two_processes_build_by_turns(tmp_path):
    command = [sys.executable, "-c", BUILDING, tmp_path / "objects"]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    for process in [subprocess.Popen(command, env=environment) for _ in range(2)]:
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "objects" / "log").read_text().split() == ["begun", "ended"] * 2
