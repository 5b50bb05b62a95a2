"""Freed memory stays in the process while a network trains, and goes back afterwards."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffreg.system.memory import kept_memory, memory_limit

glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not glibc, reason="the C library is not glibc"),
]
MOST_FLOATS = 48  # a voxel, of a registration
BYTES = 64 * 2**20  # more than glibc ever keeps by itself


def page_faults():
    """Of writing to a large block that is freed, four times, after some that settle the heap."""

    def block():
        return torch.zeros(BYTES, dtype=torch.uint8)

    for _ in range(24):
        block()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_is_taken_once():
    pages = BYTES // resource.getpagesize()
    with kept_memory():
        assert page_faults() < pages / 10


def test_memory_is_given_back():
    def held():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    with kept_memory():
        page_faults()
        inside = held()
    assert held() < inside - BYTES / 2


def test_smaller_blocks_are_no_slower_afterwards():
    """Blocks of a megabyte, which a fresh process soon keeps."""

    def faults():
        for _ in range(4):
            torch.zeros(2**20, dtype=torch.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(16):
            torch.zeros(2**20, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with kept_memory():
        page_faults()
    assert faults() < 16 * 2**20 / resource.getpagesize() / 4


def test_an_error_passes_through():
    with pytest.raises(ValueError, match="mine"), kept_memory():
        raise ValueError("mine")


HOLES = """
import resource, sys
import torch
from contextlib import nullcontext
from diffreg.system.memory import returned_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 2**20

with returned_memory() if sys.argv[1] == "returned" else nullcontext():
    torch.zeros(30 * 2**20, dtype=torch.uint8)  # teaches the C library to keep such blocks
    before = held()
    blocks = [torch.zeros(20 * 2**20, dtype=torch.uint8) for _ in range(8)]
    del blocks[::2]
    print(held() - before)
"""


def test_memory_goes_back_at_once():
    """Blocks between others that stay: kept, they would leave holes that nothing larger fits in."""
    grown = {
        how: int(subprocess.check_output([sys.executable, "-c", HOLES, how]))
        for how in ("returned", "as usual")
    }
    assert grown["returned"] < 100 < 140 < grown["as usual"]


PAIRS = """
import re, sys
from pathlib import Path
import nibabel as nib, numpy as np
from diffreg.data import prepared_pairs
from diffreg.data.finding import find_pairs
from diffreg.data.pairs import PairDataset
from diffreg.data.store import Kept

def held():
    status = Path("/proc/self/smaps_rollup").read_text()  # without what is mapped of files
    return int(re.search(r"^Anonymous: *([0-9]+)", status, re.M)[1]) / 1024

found = []
def sample(self, pair, made=prepared_pairs.PreparedPairs.sample):
    found.append(held())
    return made(self, pair)

prepared_pairs.PreparedPairs.sample = sample
prepared_pairs._READ[Kept] = 2**24
folder, rows = Path(sys.argv[1]), ["moving,fixed"]
image = np.random.default_rng(0).integers(0, 255, (48, 64, 64), dtype=np.uint8)
for k in range(60):
    for side in ("m", "f"):
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{side}{k}.nii")
    rows.append(f"m{k}.nii,f{k}.nii")
(folder / "pairs.csv").write_text("\\n".join(rows))
PairDataset(find_pairs([str(folder / "pairs.csv")], (), 3), cache=folder / "cache")
print(max(found[20:]) - found[20])
"""


@pytest.mark.slow
def test_pairs_are_made_ready_in_the_memory_of_a_few(tmp_path):
    """However many, and of images that are smaller than a registration's fields."""
    grown = subprocess.check_output([sys.executable, "-c", PAIRS, str(tmp_path)], text=True)
    assert float(grown) < 10


@pytest.mark.slow
def test_a_registration_holds_few_fields():
    """Peak memory from file to file: floats a voxel, beyond what a small pair needs."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    try:
        from memory import measured
    finally:
        sys.path.pop(0)
    options = "--similarity", "ncc", "--affine", "none"
    small, large = (measured(size, 2, *options) for size in ((32, 32, 32), (96, 96, 96)))
    floats = (large["register"] - small["register"]) * 2**20 / 4 / (96**3 - 32**3)
    assert 20 < floats < MOST_FLOATS


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "3000000\n"}, 3e6),  # a container
        ("0::/job/step\n", {"job/memory.max": "5000000", "job/step/memory.max": "max"}, 5e6),
        ("0::/job/step\n", {"job/memory.max": "5000000", "job/step/memory.max": "4000000"}, 4e6),
        # Version 1, in a container that sees the host's name of its group.
        ("9:cpu:/a\n8:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "7000000"}, 7e6),
        ("8:cpu,memory:/b\n", {"memory/b/memory.limit_in_bytes": "6000000"}, 6e6),
        ("8:memory:/b\n", {"memory/b/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
        (None, {"memory.max": "3000000"}, None),
    ],
)
def test_a_control_group_may_have_less_than_the_machine(own, limits, expected, tmp_path):
    if own is not None:
        (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit)
    machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    assert memory_limit(tmp_path / "own", tmp_path / "groups") == (expected or machine)
