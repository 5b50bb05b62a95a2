"""What several test files share."""

import os

import chromium
import pytest
import torch

from diffreg.ops import _core

# Files whose tests share one costly fixture, and so one process.
TOGETHER = (
    *("test_browser.py", "test_browser_viewer.py", "test_browser_volumes.py"),
    *("test_demo.py", "test_evaluation.py", "test_gpu_run.py", "test_site.py"),
)
LONGEST = 20  # seconds of processors, its children's too, of a test that is not marked slow


def pytest_configure(config):
    """Each of several test processes computes with one thread, and so does what it starts."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if not _core.HAS_CORE and any(item.iter_markers("core")):
        pytest.skip("of the compiled core, and there is none")


def pytest_collection_modifyitems(items):
    """In several processes the longest tests are begun first: none is waited for at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Test by test to whoever is free, a file of TOGETHER as one: xdist's own marks for groups are
    overlooked under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if path.endswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Who runs `make test-fast` waits for no test."""
    before = sum(os.times()[:4])
    result = yield
    spent = sum(os.times()[:4]) - before
    # A host that waits for a GPU spins.
    if spent > LONGEST and not any(map(item.get_closest_marker, ("slow", "long", "gpu"))):
        pytest.fail(f"{spent:.0f} s of processors: over {LONGEST} a test is marked slow or long")
    return result


@pytest.fixture(scope="module")
def one_thread():
    """On images this small a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests of a file."""
    yield from chromium.started()
