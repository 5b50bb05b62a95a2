"""The operators on a GPU: against the CPU, their gradients, determinism, streams, graphs, size."""

import shutil
import subprocess
import sys

import pytest
import torch
from cases import CASES, Calls, uniform
from emulation import case_table, comparison

from diffreg import fields, ops
from diffreg.ops._self_test import check_once

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def shapes_of(case: case_table.Case) -> list[case_table.Shape]:
    """Of rows that loads of 16 bytes are made of, and of others."""
    sizes = case.size((48, 256), (9, 17, 136)), case.size((49, 257), (9, 17, 70))
    return [case_table.Shape(2, 2, size) for size in sizes]


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
@pytest.mark.parametrize("name", case_table.CASES)
def test_kernels_agree_with_the_cpu(name, dtype):
    case = case_table.CASES[name]
    for shape in shapes_of(case):
        comparison.compare(Device(), case, shape, dtype)


@pytest.mark.parametrize(
    ("case", "shape"), case_table.with_many_tiles(), ids=lambda value: getattr(value, "name", "")
)
def test_more_tiles_in_a_sample_than_a_block_has_threads(case, shape):
    comparison.compare(Device(), case, shape, torch.float64)


@pytest.mark.parametrize("name", case_table.MASKED)
def test_a_sample_of_which_nothing_counts(name):
    case = case_table.blank(case_table.CASES[name])
    comparison.compare(Device(), case, shapes_of(case)[1], torch.float64)


@pytest.mark.parametrize("name", case_table.PLAIN)
def test_where_one_tensor_starts_in_memory_changes_no_bit(name):
    case, device = case_table.CASES[name], Device()

    def run(operator, arguments):
        return getattr(device.ops, operator)(*arguments)

    for operator, arguments in comparison.calls(case, shapes_of(case)[0], torch.float32, run):
        if operator == "warp_backward" and arguments[-3] and not arguments[-1]:  # in any order
            continue
        there = tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments)
        expected = run(operator, there)
        for moved in case_table.each_beside_16_bytes(there):
            for own, other in zip(run(operator, moved), expected, strict=True):
                assert torch.equal(own.view(torch.uint8), other.view(torch.uint8)), operator


@pytest.mark.parametrize("name", case_table.PLAIN)
def test_two_runs_give_the_same_bits(name):
    case = case_table.CASES[name]
    for shape in shapes_of(case):
        runs = [comparison.results(Device(), case, shape, torch.float32) for _ in range(3)]
        for other in runs[1:]:
            pairs = zip(runs[0], other, strict=True)
            assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_types_are_stored_and_give_what_the_cpu_gives(case, half):
    if case.masked:
        pytest.skip("the case's mask is on the CPU")
    inputs = drawn(case, half)
    check_once(torch.device("cuda"))  # whose calls are not meant
    with Calls() as record:
        found = gradients(case, [t.cuda() for t in inputs])
    images = [a for _, args in record.calls for a in args if isinstance(a, torch.Tensor)]
    # The gradient of affine_warp to moving is warp's, of points that no half type holds.
    kinds = {half, torch.float32} if case.operator == "affine_warp" else {half}
    assert {a.dtype for a in images if a.ndim == 4 and a.shape[1] == 2} == kinds
    for own, other in zip(found, gradients(case, inputs), strict=True):
        assert own.dtype == other.dtype
        # Each side is rounded once.
        allowed = 2 * comparison.TOLERANCE[own.dtype] * other.abs().max()
        assert (own.cpu() - other).abs().max() <= allowed


def drawn(case, half):
    """Inputs of a case; of a map, and of what lies behind it, few digits: where a point is rounded
    another way, another voxel is beside it, and the derivative another one."""
    moving, *others = case.inputs(2, 2, (49, 257), half)
    if case.operator == "affine_warp":
        others = [(64 * numbers).round() / 64 for numbers in others]
    return [moving, *others]


def gradients(case, inputs):
    """Values and gradients of their weighted sum."""
    pairs = list(zip(inputs, case.differentiable, strict=True))
    leaves = [t.requires_grad_(needs) for t, needs in pairs]
    values = case(*leaves)
    weights = [uniform(tuple(v.shape), v.dtype, 50 + k).to(v.device) for k, v in enumerate(values)]
    total = sum((w * v).float().sum() for w, v in zip(weights, values, strict=True))
    return [*values, *torch.autograd.grad(total, [t for t in leaves if t.requires_grad])]


@pytest.mark.parametrize("size", [(6, 7), (3, 4, 5)], ids=str)
def test_gradcheck(size):
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 1, 1, *size, generator=generator, dtype=torch.float64).cuda()
    a, b = (t.clone().requires_grad_() for t in pair)
    u = torch.rand(1, len(size), *size, generator=generator, dtype=torch.float64)
    u = (0.6 * u - 0.3).cuda().requires_grad_()
    turn = torch.eye(len(size), len(size) + 1, dtype=torch.float64, device="cuda")[None]
    turn[0, 0, 1], turn[..., -1] = 0.13, 0.27
    turn.requires_grad_()
    for function, inputs in (
        (ops.warp, (a, u)),
        (ops.affine_warp, (a, turn, u)),
        (lambda m: ops.affine_warp(pair[0], m, size=size), (turn,)),
        (ops.deformation_energy, (u,)),
        (lambda d: ops.jacobian_determinant(d, "min"), (u,)),
        (ops.correlation, (a, b)),
        (lambda w: ops.mutual_information(w, b.detach(), moving=pair[0]), (a,)),
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


def default(moving, fixed, u) -> torch.Tensor:
    return ops.registration_objective(moving, fixed, u, {"ncc": 1.0, "lncc": 0.2}).total.sum()


SIZES = pytest.mark.parametrize("size", [(128, 128), (20, 33, 40), (1, 33, 40)], ids=str)
LOSSES = pytest.mark.parametrize("loss", [loss, fused, default])


def pair_and_field(size, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    moving, fixed = torch.rand(2, 1, 1, *size, device="cuda", generator=generator)
    u = torch.rand(1, len(size), *size, device="cuda", generator=generator) - 0.5
    return moving, fixed, u.requires_grad_()


def gradient_of(loss, inputs):
    return torch.autograd.grad(loss(*inputs), inputs[2])[0]


def captured(loss, inputs):
    """A graph of the loss's gradient, and where it puts it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradient_of(loss, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient = gradient_of(loss, inputs)
    return graph, gradient


@SIZES
@LOSSES
def test_a_graph_gives_the_same_bits_a_thousand_times_and_on_another_stream(loss, size):
    inputs = pair_and_field(size)
    expected = gradient_of(loss, inputs)
    graph, gradient = captured(loss, inputs)
    for _ in range(1000):
        graph.replay()
    assert torch.equal(gradient, expected)
    gradient.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.replay()
    stream.synchronize()
    assert torch.equal(gradient, expected)


@SIZES
@LOSSES
def test_eager_calls_beside_a_replay(loss, size):
    inputs, others = pair_and_field(size), pair_and_field(size, seed=1)
    expected, of_others = gradient_of(loss, inputs), gradient_of(loss, others)
    graph, gradient = captured(loss, inputs)
    stream = torch.cuda.Stream()
    for _ in range(50):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.replay()
        found = gradient_of(loss, others)
        torch.cuda.synchronize()
        assert torch.equal(gradient, expected) and torch.equal(found, of_others)


@SIZES
@LOSSES
def test_two_streams_at_once(loss, size):
    """The counters of finished blocks belong to a call each."""
    inputs = [pair_and_field(size, seed) for seed in range(2)]
    expected = [gradient_of(loss, i) for i in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    found: list[list[torch.Tensor]] = [[], []]
    for _ in range(50):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[k].append(gradient_of(loss, inputs[k]))
    torch.cuda.synchronize()
    assert all(torch.equal(own, e) for e, each in zip(expected, found, strict=True) for own in each)


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


def test_a_volume_is_certified_as_on_the_cpu():
    u = 0.3 * torch.randn(1, 3, 18, 19, 20, generator=torch.Generator().manual_seed(0))
    found, expected = fields.fold_certificate(u.cuda()), fields.fold_certificate(u)
    assert (found.folded_cells, found.folded_inside) == (
        expected.folded_cells,
        expected.folded_inside,
    )
    assert found.where == expected.where
    assert found.smallest_determinant == pytest.approx(expected.smallest_determinant, rel=1e-12)
    assert fields.fold_certificate(0.2 * u.cuda()).passes
    scale = fields.largest_safe_scale(u)
    assert fields.largest_safe_scale(u.cuda()) == pytest.approx(scale, rel=1e-3)


def test_more_than_2_to_the_31_elements():
    size = (1, 2, 33000, 33000)
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("a field of 2^31 elements needs 30 GB of free memory")
    u = torch.zeros(size, device="cuda", requires_grad=True)
    energy = ops.deformation_energy(u)
    assert energy.determinant.item() == 0
    energy.determinant.sum().backward()
    assert not u.grad[..., -5:, :].any()


def test_memory_that_is_missing_is_told_as_such():
    moving = torch.zeros(1, 1, 4, 4, device="cuda")
    with pytest.raises(RuntimeError, match="out of memory"):
        ops.warp(moving, torch.zeros(1, 2, 1, 1, device="cuda").expand(1, 2, 1 << 23, 1 << 22))


def test_the_first_use_may_have_a_gpu_as_default_device():
    code = (
        "import torch; from diffreg import ops; torch.set_default_device('cuda');"
        "ops.warp(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("check", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer_reports_nothing(check):
    """In the self-test, which runs every kernel."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    code = "from diffreg.ops._self_test import *; check_once(torch.device('cuda', 0))"
    command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code]
    assert subprocess.run(command).returncode == 0
