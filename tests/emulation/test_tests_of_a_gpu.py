"""Tests of a GPU with the emulated kernels in its place: right kernels pass them.

Those of tests/gpu whose demands are their own; what the kernels compute is in test_emulation.py.
"""

import pytest
import torch
from cases import CASES, Calls
from gpu import test_gpu

from diffreg.ops import _checks

pytestmark = pytest.mark.slow


class Emulated(Calls):
    """Inside, the CPU stands for a GPU, and its calls are written down."""

    def __init__(self, kernels):
        super().__init__()
        self.kernels = kernels

    def __enter__(self):
        self.before, _checks.READS_HALVES = _checks.READS_HALVES, ("cpu",)
        return super().__enter__()

    def __exit__(self, *error):
        _checks.READS_HALVES = self.before
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "diffreg":
            self.calls.append((function._opname, args))
            function = getattr(self.kernels, function._opname)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def gpu(emulation, monkeypatch):
    emulation.set()
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.clone)
    monkeypatch.setattr(test_gpu, "check_once", lambda device: None)
    monkeypatch.setattr(test_gpu, "Calls", lambda: Emulated(emulation.ops))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_types(gpu, case, half):
    test_gpu.test_half_types_are_stored_and_give_what_the_cpu_gives(case, half)
