"""Every example in a docstring gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import diffreg

# Programs, and what only a build without a core has.
NO_MODULES = ("__main__", "_core", "_cpu_", "_plain")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(diffreg.__path__, "diffreg.")
    if not module.name.rpartition(".")[2].startswith(NO_MODULES)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    tests = finder.find(importlib.import_module("diffreg.transforms.files"))
    assert sum(len(test.examples) for test in tests) > 10
