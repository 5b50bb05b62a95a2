"""Half types as they are stored, from the Python functions to the kernels and back.

The kernels run emulated: what the functions hand to torch.ops.diffreg goes to the emulation.
"""

import pytest
import torch
from cases import CASES, as_tuple, uniform
from emulation import case_table, comparison
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffreg.ops import _checks

pytestmark = pytest.mark.slow

HALVES = (torch.float16, torch.bfloat16)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_half = pytest.mark.parametrize("half", HALVES, ids=str)


class Handed(TorchDispatchMode):
    """Sends the operators to other kernels, and writes down what images and fields come in."""

    def __init__(self, kernels):
        super().__init__()
        self.kernels = kernels
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "diffreg":
            images = [a for a in args if isinstance(a, torch.Tensor) and a.ndim == 4]
            self.dtypes |= {
                a.dtype for a in images if a.shape[1] == 2 and a.dtype.is_floating_point
            }
            function = getattr(self.kernels, function._opname)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def stored(emulation, monkeypatch) -> Handed:
    """The CPU stands for a GPU."""
    monkeypatch.setattr(_checks, "READS_HALVES", ("cpu",))
    emulation.set()
    return Handed(emulation.ops)


def derivatives(case, inputs):
    """Values, gradients and gradients of the gradients' length."""
    leaves = [
        tensor.clone().requires_grad_(needs)
        for tensor, needs in zip(inputs, case.differentiable, strict=True)
    ]
    asked = [tensor for tensor in leaves if tensor.requires_grad]
    values = case(*leaves)
    weights = [uniform(tuple(v.shape), v.dtype, 50 + k) for k, v in enumerate(values)]
    total = sum((w * v * v).float().sum() for w, v in zip(weights, values, strict=True))
    if case.operator == "registration_objective":  # its weights are large
        total = total / 256
    first = torch.autograd.grad(total, asked, create_graph=True)
    length = sum((g.float() ** 2).sum() for g in first).sqrt()  # its gradient fits float16
    second = torch.autograd.grad(length, asked, allow_unused=True, materialize_grads=True)
    return values, first, second


@every_case
@every_half
def test_gradients_are_those_of_the_cpu(stored, case, half):
    inputs = case.inputs(2, 2, (9, 11), half)
    with stored:
        found = derivatives(case, inputs)
    is_affine = case.operator == "affine_warp"  # whose gradient to moving is warp's in float32
    assert stored.dtypes == ({half, torch.float32} if is_affine else {half})
    _checks.READS_HALVES = ()
    for ours, theirs in zip(found, derivatives(case, inputs), strict=True):
        assert [t.dtype for t in ours] == [t.dtype for t in theirs]
        for own, other in zip(ours, theirs, strict=True):
            scale = other.abs().max().item()
            # A map's gradient is not rounded, but the value that it begins with is; and what is
            # rounded behind the two operators meets in the second derivative.
            allowed = (
                4 * comparison.TOLERANCE[half] if is_affine else 2 * comparison.TOLERANCE[own.dtype]
            )
            allowed *= scale
            assert (own - other).abs().max().item() <= allowed


@every_half
@pytest.mark.parametrize("name", case_table.PLAIN)
def test_traced_results_are_those_of_the_kernels(emulation, name, half):
    """What torch.compile plans with."""
    emulation.set()
    case, fake = case_table.CASES[name], FakeTensorMode()
    shape = case_table.Shape(2, 2, case.size((9, 11), (3, 4, 11)))

    def emulated(operator, arguments):
        return as_tuple(getattr(emulation.ops, operator)(*arguments))

    for operator, arguments in comparison.calls(case, shape, half, emulated):
        with fake:
            planned = as_tuple(getattr(torch.ops.diffreg, operator)(*map(on_gpu, arguments)))
        for plan, result in zip(planned, emulated(operator, arguments), strict=True):
            assert (plan.dtype, plan.shape) == (result.dtype, result.shape), operator


def on_gpu(argument):
    if not isinstance(argument, torch.Tensor):
        return argument
    return torch.empty(argument.shape, dtype=argument.dtype, device="cuda")
