"""The versions that are pinned can be had for every Python."""

import importlib.metadata
import platform
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = ("constraints.txt", "constraints-ants.txt", "bench/compare/constraints.txt")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements(file):
    lines = (ROOT / file).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def pins(file, python):
    """(name, version) of every line for this Python."""
    where = {"python_version": python}
    return [
        (line.name, Version(str(line.specifier).removeprefix("==")))
        for line in requirements(file)
        if line.marker is None or line.marker.evaluate(where)
    ]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", FILES)
def test_a_name_has_one_version_for_every_python(file, python):
    names = {line.name for line in requirements(file)}
    assert Counter(name for name, _ in pins(file, python)) == dict.fromkeys(names, 1)


@pytest.mark.parametrize("file", FILES[1:])
def test_the_oldest_python_gets_what_there_is_for_it(file):
    """No newer version than constraints.txt has for it, where that one tells Pythons apart."""
    apart = {line.name for line in requirements(FILES[0]) if line.marker}
    newest = {name: version for name, version in pins(FILES[0], "3.10") if name in apart}
    shared = [(name, version) for name, version in pins(file, "3.10") if name in newest]
    assert shared
    assert [(name, str(version)) for name, version in shared if version > newest[name]] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_installed_allows_the_pythons_that_it_is_pinned_for(python):
    here = {
        name: version
        for name, version in pins(FILES[0], python)
        if (name, version) in pins(FILES[0], "{}.{}".format(*platform.python_version_tuple()))
    }
    refused = []
    for found in importlib.metadata.distributions():
        name, allowed = found.metadata["Name"], found.metadata["Requires-Python"] or ""
        if str(here.get(name)) == found.version and f"{python}.99" not in SpecifierSet(allowed):
            refused.append(f"{name} {found.version}: {allowed}")
    assert refused == []
