"""The examples run, both versions of them, and print what they measured."""

import importlib
import warnings
from pathlib import Path

import pytest
import torch

from diffreg import ops

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = ["--steps", "3", "--size", "32", "--pairs", "2"]

# Theirs, of their own library and of torch: not what is tested here.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture
def example(monkeypatch):
    """example("monai_loop", needs="monai"): the module, or the test is skipped."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def module(name, *, needs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(needs, reason=f"the example needs it: pip install {needs}")
            return importlib.import_module(name)

    return module


def check(sides, printed, name):
    theirs, ours = sides
    for side in sides:
        assert len(side.losses) == len(side.step_seconds) == 3
        assert torch.tensor(side.losses).isfinite().all()
        assert 0 < side.objective_bytes < side.step_bytes
    assert ours.objective_bytes < theirs.objective_bytes
    assert name in printed and "diffreg" in printed and "peak of a step, MiB" in printed


def test_monai_loop(example, capsys):
    loop = example("monai_loop", needs="monai")
    check(loop.main(ARGUMENTS), capsys.readouterr().out, "MONAI")


def test_voxelmorph_loop(example, capsys):
    loop = example("voxelmorph_loop", needs="voxelmorph")
    sides = loop.main(ARGUMENTS)
    check(sides, capsys.readouterr().out, "VoxelMorph")
    # The same objective but for the border of the integration, where these fields are near zero.
    theirs, ours = sides
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)


def test_memory_is_that_of_the_tensors_held(example):
    side_by_side = example("side_by_side", needs="torch")

    def two_at_once():
        first = torch.ones(1000)
        del first
        second = torch.ones(1000)
        return second + torch.ones(1000)

    assert side_by_side.peak_bytes(two_at_once) == pytest.approx(3 * 4000, abs=512)


def test_an_operator_allocates_its_gradients_and_no_images_between(example):
    # What docs/operators.md says of memory.
    peak = example("side_by_side", needs="torch").peak_bytes
    warped, fixed = torch.rand(2, 1, 1, 64, 64)
    one_image = 4 * 64 * 64
    warped.requires_grad_()

    def gradient(operator):
        return torch.autograd.grad(operator(warped, fixed).sum(), warped)

    for operator in (ops.correlation, ops.local_correlation):
        gradient(operator)
        assert peak(lambda operator=operator: operator(warped, fixed)) < 1024
        assert peak(lambda operator=operator: gradient(operator)) < one_image + 1024
