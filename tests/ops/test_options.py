"""What the compiled operators say to a wrong option, which can come past Python's checks."""

import re
from pathlib import Path

import pytest
import torch
from wrong_options import CASES

import diffreg.ops  # noqa: F401  (registers the operators)

CSRC = Path(__file__).parents[2] / "csrc"


@pytest.mark.core
@pytest.mark.parametrize(("operator", "arguments", "message"), CASES, ids=lambda v: str(v)[:40])
def test_a_wrong_option_is_told_the_right_ones(operator, arguments, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        getattr(torch.ops.diffreg, operator)(*arguments)


def sources_with(text):
    files = [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu"}]
    return [p.name for p in files if text in p.read_text()]


@pytest.mark.parametrize("name", ["border", "linear", "hyperelastic", "ngf", "mean"])
def test_an_option_s_name_stands_in_one_place(name):
    assert len(sources_with(f'"{name}"')) == 1


def test_no_source_is_of_one_number_of_axes():
    assert sources_with("constexpr int D = 2") + sources_with("constexpr int D = 3") == []
