"""The operators on a GPU: against the CPU, their gradients, determinism, streams, graphs, size."""

import shutil
import subprocess
import sys

import pytest
import torch
from cases import CASES, Calls, uniform
from emulation import comparison

from diffreg import ops
from diffreg.ops._self_test import check_once

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

SHAPE = comparison.Shape(2, 2, (49, 257))


class Device:
    """The CUDA operators, with arguments moved there."""

    class ops:
        def __getattr__(self, name):
            def call(*arguments):
                on_gpu = (a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments)
                value = getattr(torch.ops.diffreg, name)(*on_gpu)
                return tuple(t.cpu() for t in comparison.as_tuple(value))

            return call

    ops = ops()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", comparison.CASES)
def test_kernels_agree_with_the_cpu(name, dtype):
    comparison.compare(Device(), comparison.CASES[name], SHAPE, dtype)


@pytest.mark.parametrize("name", comparison.PLAIN)
def test_two_runs_give_the_same_bits(name):
    case = comparison.CASES[name]
    runs = [comparison.results(Device(), case, SHAPE, torch.float32) for _ in range(3)]
    for other in runs[1:]:
        pairs = zip(runs[0], other, strict=True)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_types_are_stored_and_give_what_the_cpu_gives(case, half):
    if case.masked:
        pytest.skip("the case's mask is on the CPU")
    inputs = case.inputs(2, 2, (49, 257), half)
    check_once(torch.device("cuda"))  # whose calls are not meant
    with Calls() as record:
        found = gradients(case, [t.cuda() for t in inputs])
    images = [a for _, args in record.calls for a in args if isinstance(a, torch.Tensor)]
    assert {a.dtype for a in images if a.ndim == 4 and a.shape[1] == 2} == {half}
    for own, other in zip(found, gradients(case, list(inputs)), strict=True):
        assert own.dtype == other.dtype
        # Each side is rounded once.
        allowed = 2 * comparison.TOLERANCE[own.dtype] * other.abs().max()
        assert (own.cpu() - other).abs().max() <= allowed


def gradients(case, inputs):
    """Values and gradients of their weighted sum."""
    pairs = list(zip(inputs, case.differentiable, strict=True))
    leaves = [t.requires_grad_(needs) for t, needs in pairs]
    values = case(*leaves)
    weights = [uniform(tuple(v.shape), v.dtype, 50 + k).to(v.device) for k, v in enumerate(values)]
    total = sum((w * v).float().sum() for w, v in zip(weights, values, strict=True))
    return [*values, *torch.autograd.grad(total, [t for t in leaves if t.requires_grad])]


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 1, 1, 6, 7, generator=generator, dtype=torch.float64).cuda()
    a, b = (t.clone().requires_grad_() for t in pair)
    u = (0.6 * torch.rand(1, 2, 6, 7, generator=generator, dtype=torch.float64) - 0.3).cuda()
    u.requires_grad_()
    for function, inputs in (
        (ops.warp, (a, u)),
        (ops.deformation_energy, (u,)),
        (lambda d: ops.jacobian_determinant(d, "min"), (u,)),
        (ops.correlation, (a, b)),
        (ops.local_correlation, (a, b)),
        (lambda w, r: ops.parallel_level_sets(w, r, 0.1, 0.1), (a, b)),
        (ops.gradient_scale, (a,)),
        (lambda d: fused(*pair, d, {"ncc": 1.0, "pls": 0.5, "ssd": 2.0}), (u,)),
        (lambda d: fused(*pair, d, {"ncc": 1.0, "lncc": 0.2}), (u,)),
    ):
        # The gradient to moving is added in any order.
        assert torch.autograd.gradcheck(function, inputs, nondet_tol=1e-12)


def test_the_gradient_to_moving_is_deterministic_when_asked_for():
    moving = torch.rand(1, 1, 512, 512, device="cuda", requires_grad=True)
    u = 40 * torch.randn(1, 2, 512, 512, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        found = [torch.autograd.grad(ops.warp(moving, u).square().sum(), moving)[0] for _ in "123"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def loss(moving: torch.Tensor, fixed: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    warped = ops.warp(moving, u)
    energy = ops.deformation_energy(u)
    return (ops.correlation(warped, fixed) + energy.bending + energy.determinant).sum()


def fused(moving, fixed, u, similarity="pls") -> torch.Tensor:
    scales = {"eps_moving": 0.1, "eps_fixed": 0.1}
    return ops.registration_objective(moving, fixed, u, similarity, **scales).total.sum()


@pytest.mark.parametrize("loss", [loss, fused])
def test_a_graph_captures_the_objective(loss):
    moving, fixed = torch.rand(2, 1, 1, 128, 128, device="cuda")
    u = torch.zeros(1, 2, 128, 128, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(loss(moving, fixed, u), u)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (gradient,) = torch.autograd.grad(loss(moving, fixed, u), u)
    graph.replay()
    expected = torch.autograd.grad(loss(moving, fixed, u), u)[0]
    torch.testing.assert_close(gradient, expected)


def test_the_current_stream_is_used():
    moving = torch.rand(1, 1, 2048, 2048, device="cuda")
    u = torch.zeros(1, 2, 2048, 2048, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        u += 1
        warped = ops.warp(moving, u)
    stream.synchronize()
    torch.testing.assert_close(warped, ops.warp(moving, u))


def test_more_than_2_to_the_31_elements():
    size = (1, 2, 33000, 33000)
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("a field of 2^31 elements needs 30 GB of free memory")
    u = torch.zeros(size, device="cuda", requires_grad=True)
    energy = ops.deformation_energy(u)
    assert energy.determinant.item() == 0
    energy.determinant.sum().backward()
    assert not u.grad[..., -5:, :].any()


@pytest.mark.parametrize("check", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer_reports_nothing(check):
    """In the self-test, which runs every kernel."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    code = "from diffreg.ops._self_test import *; check_once(torch.device('cuda', 0))"
    command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code]
    assert subprocess.run(command).returncode == 0
