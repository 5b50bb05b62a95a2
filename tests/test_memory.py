"""Freed memory stays in the process while a network trains, and goes back afterwards."""

import ctypes
import resource
import sys

import pytest
import torch

from diffreg.training._memory import kept_memory

glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not glibc, reason="the C library is not glibc"),
]
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
