"""What an operator allocates a voxel of a volume: its results, and no copies of its inputs.

As torch sees it; scratch of a few rows or planes, which a driver takes itself, is not counted.
"""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from diffreg import ops

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning"),  # torch 2.11
]
SIZE = (24, 24, 24)
SLACK = 1.0  # bytes a voxel: sums of a sample, gradients of scalars


def allocated(run) -> float:
    """Bytes a voxel."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    taken = [e.self_cpu_memory_usage for e in profiled.events() if e.name.startswith("aten::empty")]
    return sum(taken) / torch.Size(SIZE).numel()


def image():
    return torch.rand(1, 1, *SIZE)


def field():
    return torch.randn(1, 3, *SIZE).mul(0.1).requires_grad_()


def gradients(value, *inputs):
    torch.autograd.grad(value.sum(), inputs)


def warp():
    moving, u = image(), field()
    return lambda: gradients(ops.warp(moving, u), u)


def energies():
    u = field()
    return lambda: gradients(torch.stack(tuple(ops.deformation_energy(u))), u)


def level_sets():
    warped, fixed = image().requires_grad_(), image()
    return lambda: gradients(ops.parallel_level_sets(warped, fixed, 0.1, 0.1), warped)


def local_correlation():
    warped, fixed = image().requires_grad_(), image()
    return lambda: gradients(ops.local_correlation(warped, fixed), warped)


def objective():
    moving, fixed, u = image(), image(), field()

    def run():
        value = ops.registration_objective(moving, fixed, u, "pls", eps_moving=0.1, eps_fixed=0.1)
        gradients(value.total, u)

    return run


# Bytes a voxel, forward and backward: an image is 4, a field 12. Autograd's gradient of a sum over
# the warped image is an image more.
BOUNDS = {warp: 16 + 4, energies: 12, level_sets: 4, local_correlation: 4, objective: 24}


@pytest.mark.parametrize("make", BOUNDS, ids=lambda make: make.__name__)
def test_bytes_allocated(make):
    torch.manual_seed(0)
    assert 4 <= allocated(make()) <= BOUNDS[make] + SLACK
