"""What a GPU asks of the Python around the kernels, tried without one."""

import pytest
import torch
from cases import CASES, Waits
from torch._subclasses.fake_tensor import FakeTensorMode

from diffreg.fields import resize
from diffreg.losses import Keypoint
from diffreg.ops import _autograd, _checks, _self_test, warp
from diffreg.ops.parallel_level_sets import scale_argument


@pytest.mark.parametrize("size", [(1, 6), (4, 1, 5)], ids=str)  # flat ones: all others do as much
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operator_and_its_derivatives_wait_for_nothing(case, size, monkeypatch):
    monkeypatch.setattr(_checks, "has_values", lambda tensor: False)  # as on a GPU
    inputs = case.inputs(2, 2, size, torch.float32)
    pairs = zip(inputs, case.differentiable, strict=True)
    leaves = [tensor for tensor, needs in pairs if tensor.requires_grad_(needs).requires_grad]
    with Waits() as waits:
        values = case(*inputs)
        total = sum((value**2).sum() for value in values)
        gradients = torch.autograd.grad(total, leaves, create_graph=True)
        squares = sum((gradient**2).sum() for gradient in gradients)
        if squares.requires_grad:  # not of no voxels' worth
            torch.autograd.grad(squares, leaves, allow_unused=True)
    assert waits.seen == []


def test_points_and_grids_of_other_sizes_wait_for_nothing():
    u, points = torch.rand(2, 2, 5, 6), torch.rand(2, 3, 2)
    with Waits() as waits:
        Keypoint(spacing=2.0)(u, points, points + 1)
        resize(u, (7, 9))
    assert waits.seen == []


def test_an_edge_scale_is_on_the_host_whatever_the_default_device():
    with FakeTensorMode(), torch.device("meta"):
        image = torch.empty(2, 1, 4, 4, device="cuda")
        assert scale_argument("eps_warped", 0.1, image).device.type == "cpu"


class AsOnTheCpu:
    """The CPU's operators, which do not read half types."""

    def __getattr__(self, name):
        def call(*arguments):
            return getattr(torch.ops.diffreg, name)(
                *(a.float() if _self_test._is_half(a) else a for a in arguments)
            )

        return call


def under_vmap(run):
    torch.func.vmap(lambda x: (run(), x)[1])(torch.ones(2))


def with_another_default_device(run):
    with torch.device("meta"):
        run()


@pytest.mark.parametrize("caller", [under_vmap, with_another_default_device])
def test_the_first_use_test_does_not_see_where_the_first_use_is(caller, monkeypatch):
    monkeypatch.setattr(_self_test, "_passed", set())
    monkeypatch.setattr(_self_test, "architecture", lambda index: "sm_00")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    compare, compared = _self_test.compare, []

    def on_the_cpu(device, ops, where):
        compare(torch.device("cpu"), AsOnTheCpu(), where)
        compared.append(device)

    monkeypatch.setattr(_self_test, "compare", on_the_cpu)
    device = torch.device("cuda", 0)
    caller(lambda: _self_test.check_once(device))
    _self_test.check_once(device)
    assert compared == [device]


def too_large():
    """A field of 2^48 bytes, in one voxel's memory."""
    return torch.zeros(1, 2, 1, 1).expand(1, 2, 1 << 23, 1 << 22)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="before torch 2.13 it cannot be asked for")
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_memory_that_is_missing_is_told_by_torch_itself(needs_gradient):
    moving = torch.zeros(1, 1, 4, 4, requires_grad=needs_gradient)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        warp(moving, too_large())


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", torch.OutOfMemoryError, "2.00 GiB"),
        ("", RuntimeError, r"out of memory, or what torch has printed: .*aten::contiguous"),
    ],
)
def test_memory_that_a_gpu_misses_raises_what_torch_raises(said, kind, words, monkeypatch):
    monkeypatch.setattr(_autograd, "what_torch_said", lambda: said)
    with pytest.raises(RuntimeError, match=words) as caught:
        warp(torch.zeros(1, 1, 4, 4), too_large())
    assert caught.type is kind


def test_the_first_use_test_blames_no_kernel_for_a_full_gpu():
    class Full:
        def __getattr__(self, name):
            def call(*arguments):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

            return call

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        _self_test.compare(torch.device("cpu"), Full(), "sm_00")
