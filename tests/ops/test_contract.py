"""What holds for every operator: it is its reference, whatever the sizes, layouts and threads."""

import pytest
import torch
from cases import CASES, PLAIN, Calls, Case, uniform
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from diffreg import ops
from diffreg.ops import _core

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_operator = pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.operator)
# On first use, parts of torch warn about torch's own torch.jit.
torch_warns = pytest.mark.filterwarnings("ignore:.torch.jit")
SIZES = [(1, 1), (1, 5), (3, 1), (2, 2), (3, 3), (5, 4), (16, 17), (17, 16), (33, 7), (2, 300)]
EMPTY = [
    *((0, 1, (3, 4)), (2, 1, (0, 4)), (2, 1, (3, 0)), (0, 1, (0, 0))),
    *((0, 1, (3, 2, 4)), (2, 1, (0, 3, 4)), (2, 1, (3, 0, 4)), (2, 1, (3, 4, 0))),
    *((2, 1, (1, 0, 4)), (2, 1, (3, 1, 0)), (1, 1, (0, 0, 0))),
]
image_and_volume = pytest.mark.parametrize("size", [(6, 5), (4, 3, 5)], ids=str)


def leaves(case: Case, inputs):
    pairs = zip(inputs, case.differentiable, strict=True)
    return [tensor.detach().clone().requires_grad_(needs) for tensor, needs in pairs]


def of_last(case: Case, function, inputs):
    """The function of the last input that has a gradient, and that input."""
    k = max(k for k, has_gradient in enumerate(case.differentiable) if has_gradient)
    return lambda x: function(*inputs[:k], x, *inputs[k + 1 :]), inputs[k]


def upstream(outputs):
    return [uniform(tuple(out.shape), out.dtype, 50 + k) for k, out in enumerate(outputs)]


def gradients(function, inputs, weights=None):
    """Value of the outputs and gradient of <weights, outputs> to the inputs that have one."""
    outputs = function(*inputs)
    weights = upstream(outputs) if weights is None else weights
    total = sum((w * out).sum() for w, out in zip(weights, outputs, strict=True))
    asked = [tensor for tensor in inputs if tensor.requires_grad]
    return outputs, torch.autograd.grad(total, asked)


def check_close(actual, expected, digits: float):
    """Relative to the largest entry: the entries are sums in which larger terms cancel."""
    for a, e in zip(actual, expected, strict=True):
        scale = e.abs().max().item() if e.numel() else 0.0
        torch.testing.assert_close(a, e, rtol=digits, atol=digits * max(scale, 1.0))


def every_case_of(sizes):
    """Every case with every size for which it has values."""
    pairs = [(case, size) for case in CASES for size in sizes if case.has_values(size)]
    names = [f"{case.name}-{size}" for case, size in pairs]
    return pytest.mark.parametrize(("case", "size"), pairs, ids=names)


# The same function as the reference


@every_case_of(SIZES)
def test_operator_is_its_reference_in_double(case, size):
    inputs = leaves(case, case.inputs(2, 3, size, torch.float64))
    value, gradient = gradients(case, inputs)
    expected_value, expected_gradient = gradients(case.reference, inputs)
    check_close(value, expected_value, 1e-12)
    check_close(gradient, expected_gradient, 1e-12)


@every_case_of(SIZES)
def test_operator_is_its_reference_in_single(case, size):
    inputs = leaves(case, case.inputs(2, 1, size, torch.float32))
    value, gradient = gradients(case, inputs)
    expected_value, expected_gradient = gradients(case.reference, inputs)
    assert all(v.dtype == torch.float32 for v in (*value, *gradient))
    # The point where a map leads is rounded to float32, of 300 voxels to 2e-5.
    digits = 1e-4 if case.operator == "affine_warp" else 1e-5
    check_close(value, expected_value, digits)
    check_close(gradient, expected_gradient, digits)


@every_case
def test_a_sum_sends_back_an_expanded_gradient(case):
    inputs = leaves(case, case.inputs(2, 1, (5, 6), torch.float64))
    asked = [tensor for tensor in inputs if tensor.requires_grad]
    actual = torch.autograd.grad(sum(out.sum() for out in case(*inputs)), asked)
    expected = torch.autograd.grad(sum(out.sum() for out in case.reference(*inputs)), asked)
    check_close(actual, expected, 1e-12)


@every_case
@image_and_volume
def test_samples_do_not_mix(case, size):
    inputs = case.inputs(3, 2, size, torch.float64)
    together = case(*inputs)
    for n in range(3):
        alone = case(*(tensor[n : n + 1] for tensor in inputs))
        # torch's own sums differ in bits.
        check_close([t[n : n + 1] for t in together], alone, 0 if _core.HAS_CORE else 1e-14)


# Layouts and empty inputs


def transposed(tensor):
    return tensor.transpose(2, -1).contiguous().transpose(2, -1)


def channels_last(tensor):
    if tensor.ndim == 3:  # a map
        return tensor.mT.contiguous().mT
    order = torch.channels_last_3d if tensor.ndim == 5 else torch.channels_last
    return tensor.contiguous(memory_format=order)


def every_second(tensor):
    shape = (*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    wide = torch.full(shape, torch.nan, dtype=tensor.dtype)
    wide[..., 1::2] = tensor
    return wide[..., 1::2]


@every_case
@image_and_volume
@pytest.mark.parametrize("layout", [transposed, channels_last, every_second])
def test_layouts_do_not_matter(case, layout, size):
    inputs = case.inputs(2, 3, size, torch.float64)
    strange = [layout(tensor) for tensor in inputs]
    expected, expected_gradient = gradients(case, leaves(case, inputs))
    strange = [s.requires_grad_(d) for s, d in zip(strange, case.differentiable, strict=True)]
    actual, gradient = gradients(case, strange)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert all(torch.equal(a, e) for a, e in zip(gradient, expected_gradient, strict=True))


@every_case
@image_and_volume
def test_expanded_inputs(case, size):
    inputs = [t.expand(3, *t.shape[1:]) for t in case.inputs(1, 1, size, torch.float64)]
    copies = [tensor.clone() for tensor in inputs]
    assert all(torch.equal(a, e) for a, e in zip(case(*inputs), case(*copies), strict=True))


@every_case
@image_and_volume
def test_a_strange_upstream_gradient_layout_does_not_matter(case, size):
    inputs = leaves(case, case.inputs(4, 1, size, torch.float64))
    plain = upstream(case(*inputs))
    strange = [torch.stack([w, w + 1], dim=-1)[..., 0] for w in plain]
    _, expected = gradients(case, inputs, plain)
    _, actual = gradients(case, inputs, strange)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@every_case
@pytest.mark.parametrize("samples, channels, size", EMPTY, ids=str)
def test_empty_inputs_have_values_and_gradients_of_the_right_shape(case, samples, channels, size):
    if samples and not case.has_values(size):
        with pytest.raises(ValueError, match="needs a cell, there is none"):
            case(*case.inputs(samples, channels, size, torch.float64))
        return
    inputs = leaves(case, case.inputs(samples, channels, size, torch.float64))
    value, gradient = gradients(case, inputs)
    assert [v.shape for v in value] == [v.shape for v in case.reference(*inputs)]
    assert all(torch.isfinite(v).all() for v in value)
    asked = [tensor for tensor in inputs if tensor.requires_grad]
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(gradient, asked, strict=True))


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if "energy" not in c.name and "determ" not in c.name],
    ids=lambda case: case.name,
)
@image_and_volume
def test_images_without_channels(case, size):
    inputs = leaves(case, case.inputs(2, 0, size, torch.float64))
    value, gradient = gradients(case, inputs)
    check_close(value, case.reference(*inputs), 1e-12)
    if case.operator == "registration_objective":  # its energies need no image
        check_close(gradient, gradients(case.reference, inputs)[1], 1e-12)
    else:
        assert all(not g.any() for g in gradient)


# Bits


@pytest.mark.core
@pytest.mark.alone
@every_case
@pytest.mark.parametrize("size", [(130, 290), (40, 12, 33)], ids=str)  # in 3-D five strips
def test_same_bits_for_every_number_of_threads(case, size):
    threads = torch.get_num_threads()
    inputs = leaves(case, case.inputs(2, 2, size, torch.float32))

    def run():
        value, gradient = gradients(case, inputs)
        return [*value, *gradient]

    try:
        torch.set_num_threads(1)
        expected = run()
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert all(torch.equal(a, e) for a, e in zip(run(), expected, strict=True)), count
    finally:
        torch.set_num_threads(threads)


@every_case
@image_and_volume
def test_inputs_are_not_written_to(case, size):
    inputs = leaves(case, case.inputs(2, 2, size, torch.float64))
    copies = [tensor.detach().clone() for tensor in inputs]
    gradients(case, inputs)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


# Derivatives that are asked for, and those that are not


TWO_INPUTS = [
    case for case in CASES if case.differentiable == (True, True) and case.operator != "affine_warp"
]


@pytest.mark.parametrize("case", TWO_INPUTS, ids=lambda case: case.name)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
def test_only_gradients_that_are_asked_for_are_computed(case, needs):
    inputs = case.inputs(2, 1, (5, 4), torch.float64)
    inputs = [t.requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
    with Calls() as record:
        _, actual = gradients(case, inputs)
    backward = [args for name, args in record.calls if name == case.operator + "_backward"]
    assert [args[-2:] for args in backward] == [needs]
    check_close(actual, gradients(case.reference, inputs)[1], 1e-12)


@pytest.mark.parametrize("case", TWO_INPUTS, ids=lambda case: case.name)
def test_the_backward_operator_gives_nothing_for_what_it_was_not_asked(case):
    inputs = case.inputs(2, 1, (5, 4), torch.float64)
    forward = getattr(torch.ops.diffreg, case.operator)
    backward = getattr(torch.ops.diffreg, case.operator + "_backward")
    outputs = forward(*case.arguments(inputs))
    value, *saved = outputs if isinstance(outputs, tuple) else (outputs,)
    for needs in ((True, False), (False, True), (False, False)):
        results = backward(torch.ones_like(value), *saved, *case.arguments(inputs), *needs)
        assert [r.numel() > 0 for r in results] == list(needs)


@every_case
def test_nothing_is_recorded_where_no_gradient_is_needed(case):
    inputs = case.inputs(2, 1, (5, 4), torch.float64)
    assert all(out.grad_fn is None for out in case(*inputs))
    inputs = leaves(case, inputs)
    with torch.no_grad():
        assert all(out.grad_fn is None for out in case(*inputs))


# Double backward, forward mode, function transforms


def penalty_gradients(function, case, inputs):
    """Gradient of a gradient penalty; the loss is not linear, so upstream depends on the inputs."""
    asked = [tensor for tensor in inputs if tensor.requires_grad]
    outputs = function(*inputs)
    weights = upstream(outputs)
    loss = sum((w * out**2).sum() for w, out in zip(weights, outputs, strict=True))
    first = torch.autograd.grad(loss, asked, create_graph=True)
    penalty = sum((g**2).sum() for g in first)
    return torch.autograd.grad(penalty, asked, allow_unused=True, materialize_grads=True)


@every_case
def test_gradient_penalty_is_the_reference_s(case):
    inputs = leaves(case, case.inputs(2, 2, (5, 6), torch.float64))
    actual = penalty_gradients(case, case, inputs)
    expected = penalty_gradients(case.reference, case, inputs)
    assert any(e.any() for e in expected)
    check_close(actual, expected, 1e-10)  # a second derivative cancels more


@every_operator
def test_derivatives_of_third_order_are_the_reference_s(case):
    inputs = leaves(case, case.inputs(1, 1, (4, 4), torch.float64))
    asked = [tensor for tensor in inputs if tensor.requires_grad]

    def third(function):
        total = sum((out**2).sum() for out in function(*inputs))
        for _ in range(2):
            total = sum((g**2).sum() for g in torch.autograd.grad(total, asked, create_graph=True))
        return torch.autograd.grad(total, asked)

    check_close(third(case), third(case.reference), 1e-9)  # a third derivative cancels more


@every_operator
def test_hessian_is_the_reference_s(case):
    inputs = case.inputs(1, 1, (3, 3), torch.float64)

    def hessian(function):
        of_one, one = of_last(case, function, inputs)
        loss = lambda x: sum((out**2).sum() for out in of_one(x))  # noqa: E731
        return torch.autograd.functional.hessian(loss, one)

    check_close([hessian(case)], [hessian(case.reference)], 1e-10)


@every_operator
def test_one_input_may_depend_on_the_other(case):
    if case.operator == "registration_objective":
        pytest.skip("one field alone; the single operators are composed where images depend on it")
    if case.operator == "affine_warp":
        pytest.skip("no input has the shape of another; test_affine_warp.py has it of one number")
    one = (0.4 * uniform((1, 2, 5, 6), torch.float64)).requires_grad_()

    def second(function):
        inputs = [one, torch.sin(7 * one)][: len(case.differentiable)]
        total = sum((out**2).sum() for out in function(*inputs)) + (one**3).sum()
        (first,) = torch.autograd.grad(total, one, create_graph=True)
        return torch.autograd.grad((first**2).sum(), one)

    check_close(second(case), second(case.reference), 1e-10)


@every_operator
@torch_warns
@pytest.mark.parametrize("transform", ["jvp", "jacfwd"])
def test_forward_mode_raises(case, transform):
    inputs = case.inputs(1, 1, (4, 4), torch.float64)
    with pytest.raises(NotImplementedError, match=f"{case.operator} has no forward-mode"):
        if transform == "jvp":
            torch.func.jvp(case, inputs, inputs)
        else:
            torch.func.jacfwd(case)(*inputs)


@every_operator
@torch_warns
def test_forward_mode_over_reverse_raises(case):
    inputs = leaves(case, case.inputs(1, 1, (4, 4), torch.float64))
    value = case(*inputs)[0]
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=f"{case.operator} has no forward-mode"),
    ):
        dual = forward_ad.make_dual(torch.ones_like(value), torch.ones_like(value))
        torch.autograd.grad(value, [i for i in inputs if i.requires_grad], dual)


@every_operator
@torch_warns
def test_forward_mode_over_double_backward_raises(case):
    inputs = leaves(case, case.inputs(1, 1, (4, 4), torch.float64))
    value = case(*inputs)[0]
    asked = [tensor for tensor in inputs if tensor.requires_grad]
    first = torch.autograd.grad((value**2).sum(), asked, create_graph=True)
    operator = case.operator.removeprefix("affine_")  # warp's is the gradient to moving
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=f"{operator} has no forward-mode"),
    ):
        dual = forward_ad.make_dual(torch.ones_like(first[0]), torch.ones_like(first[0]))
        torch.autograd.grad(first[0], asked, dual)


@every_operator
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_function_transforms_raise_in_our_words(case, transform, mapped):
    # torch's register_autograd does not know them; what matters is that no wrong number comes back.
    inputs = case.inputs(1, 1, (4, 4), torch.float64)
    function = transform(lambda *x: sum(out.sum() for out in case(*x)))
    if mapped:
        inputs, function = [t[None] for t in inputs], torch.func.vmap(function)
    message = rf"{case.operator} has no gradient under torch\.func\.grad, vjp or jacrev; use torch"
    with pytest.raises(NotImplementedError, match=message):
        function(*inputs)


@every_case
@image_and_volume
def test_vmap_is_a_loop_over_the_samples(case, size, capfd):
    inputs = case.inputs(3, 2, size, torch.float64)
    mapped = torch.func.vmap(case)(*(tensor.unsqueeze(1) for tensor in inputs))
    for one, all_together in zip(mapped, case(*inputs), strict=True):
        assert torch.equal(one.squeeze(1), all_together)
    assert not capfd.readouterr().err  # torch asks for an issue where it has to loop itself


@every_operator
def test_vmap_of_any_axis_beside_what_is_shared_and_twice(case):
    *shared, last = case.inputs(2, 1, (5, 4), torch.float64)
    several = torch.stack([last, 0.5 * last, -last], 2)
    mapped = torch.func.vmap(case, (*[None] * len(shared), 2))(*shared, several)
    twice = torch.func.vmap(lambda x: torch.func.vmap(lambda y: case(*shared, y))(x), 0)
    inner = twice(several.movedim(2, 0).reshape(3, 1, *last.shape))
    for k, each in enumerate(several.unbind(2)):
        for found, again, expected in zip(mapped, inner, case(*shared, each), strict=True):
            assert torch.equal(found[k], expected) and torch.equal(again[k, 0], expected)


@every_operator
def test_the_gradient_of_a_mapped_operator_is_that_of_a_loop(case):
    inputs = leaves(case, case.inputs(3, 1, (5, 4), torch.float64))
    gradients_of = [tensor for tensor in inputs if tensor.requires_grad]
    mapped = torch.func.vmap(case)(*(tensor.unsqueeze(1) for tensor in inputs))
    found = torch.autograd.grad(sum(out.sum() for out in mapped), gradients_of)
    expected = torch.autograd.grad(sum(out.sum() for out in case(*inputs)), gradients_of)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_vmap_over_nothing_is_empty():
    nothing = torch.zeros(0, 2, 1, 5, 4)
    assert torch.func.vmap(ops.correlation)(nothing, nothing).shape == (0, 2)


@every_operator
def test_vectorized_jacobian_is_the_reference_s(case):
    inputs = case.inputs(1, 1, (3, 3), torch.float64)

    def jacobian(function):
        of_one, one = of_last(case, function, inputs)
        return torch.autograd.functional.jacobian(lambda x: of_one(x)[0], one, vectorize=True)

    check_close([jacobian(case)], [jacobian(case.reference)], 1e-12)


# torch's own demands on operators


@pytest.mark.slow
# On images: what schema and autograd promise is the same for volumes; the fake kernels' shapes are
# compared on both below.
@every_case_of([(3, 5), (1, 1)])
def test_opcheck_forward(case, size):
    inputs = leaves(case, case.inputs(2, 2, size, torch.float64))
    operator = getattr(torch.ops.diffreg, case.operator).default
    torch.library.opcheck(operator, case.arguments(inputs))


@pytest.mark.slow
@every_case
def test_opcheck_backward(case):
    inputs = leaves(case, case.inputs(2, 2, (3, 5), torch.float32))
    arguments = case.arguments(inputs)
    with torch.no_grad():
        outputs = getattr(torch.ops.diffreg, case.operator)(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs, saved = outputs[: len(outputs) - case.saved], outputs[len(outputs) - case.saved :]
    if case.operator == "registration_objective":  # the terms; without what is to be returned
        outputs, arguments = outputs[:5], (*arguments[:-3], arguments[-1])
    weights = [w.requires_grad_() for w in upstream(outputs)]
    operator = getattr(torch.ops.diffreg, case.operator + "_backward").default
    # Compiling the double backward takes seconds: once an operator.
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += ["test_aot_dispatch_dynamic"] if case in PLAIN else []
    torch.library.opcheck(operator, (*weights, *saved, *arguments, *case.needs), test_utils=checks)


@every_case
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5), (1, 5, 6)], ids=str)
def test_fake_kernels_know_shapes_and_dtypes(case, size):
    def described(outputs):
        return [(out.shape, out.dtype) for out in outputs]

    inputs = case.inputs(2, 2, size, torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = case(*(torch.empty_like(tensor) for tensor in inputs))
    assert described(found) == described(case(*inputs))


@every_case
def test_compiled_without_graph_breaks(case):
    torch._dynamo.reset()
    compiled = torch.compile(case.__call__, fullgraph=True, backend="aot_eager")
    inputs = leaves(case, case.inputs(2, 2, (5, 6), torch.float32))
    expected, expected_gradient = gradients(case, inputs)
    actual, gradient = gradients(compiled, inputs)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert all(torch.equal(a, e) for a, e in zip(gradient, expected_gradient, strict=True))


@pytest.mark.slow
@every_operator
@pytest.mark.parametrize(
    "sizes",
    [((5, 6), (8, 7), (9, 11)), ((3, 5, 6), (4, 8, 7), (5, 2, 9))],
    ids=["images", "volumes"],
)
def test_compiled_for_dynamic_shapes(case, sizes):
    torch._dynamo.reset()
    compiled = torch.compile(case.__call__, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in sizes:
        inputs = leaves(case, case.inputs(2, 2, size, torch.float32))
        expected, expected_gradient = gradients(case, inputs)
        actual, gradient = gradients(compiled, inputs)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
        assert all(torch.equal(a, e) for a, e in zip(gradient, expected_gradient, strict=True))


class Exported(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *inputs):
        return self.case(*inputs)


@pytest.mark.slow
@every_operator
def test_exported_for_any_size(case):
    inputs = case.inputs(2, 2, (7, 9), torch.float32)
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = tuple(free if t is not None and t.ndim == 4 else None for t in inputs)
    exported = torch.export.export(Exported(case), tuple(inputs), dynamic_shapes=(shapes,))
    others = case.inputs(2, 2, (8, 5), torch.float32)
    for a, e in zip(exported.module()(*others), case(*others), strict=True):
        assert torch.equal(a, e)


@pytest.mark.slow
@torch_warns
def test_compiled_by_the_default_backend():
    torch._dynamo.reset()
    case = next(case for case in CASES if case.name == "energy")
    compiled = torch.compile(
        lambda u: tuple(out * 2 + 1 for out in case(u)), fullgraph=True, backend="inductor"
    )
    inputs = leaves(case, case.inputs(2, 2, (5, 6), torch.float32))
    expected = gradients(lambda u: tuple(out * 2 + 1 for out in case(u)), inputs)
    actual = gradients(compiled, inputs)
    for a, e in zip(actual, expected, strict=True):
        check_close(a, e, 1e-6)


# Memory is safe, whatever torch.ops.diffreg.* is given


def spoiled(argument):
    """Values that the argument must not have."""
    if isinstance(argument, torch.Tensor):
        yield argument[..., :-1]
        yield argument.unsqueeze(0)
        yield argument.flatten()[:1].squeeze(0)
        yield torch.cat([argument, argument])
        yield argument.to(torch.int32)
        yield argument.to(torch.float16)
        yield argument.to(torch.float32)
        yield argument.to(torch.complex128)
        if argument.ndim >= 4:
            yield argument[:, :0]
            yield argument.repeat(1, 3, *[1] * (argument.ndim - 2))
            yield argument[:, :, :0]
            yield argument.squeeze(2) if argument.ndim == 5 else argument.unsqueeze(2)
    elif isinstance(argument, str):
        yield from ("", "quintic", "linear\0")
    elif isinstance(argument, list):
        yield from ([], [1.0], [*argument, 1.0])


def raw_calls(case, size):
    """The raw operator and its backward operator, with arguments that each of them takes."""
    inputs = case.inputs(2, 1, size, torch.float64)
    arguments = case.arguments(inputs)
    forward = getattr(torch.ops.diffreg, case.operator)
    outputs = forward(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    backward = getattr(torch.ops.diffreg, case.operator + "_backward")
    inner = [*outputs, *arguments, *case.needs]
    if case.operator == "registration_objective":
        inner = [*outputs[:5], *arguments[:-3], arguments[-1]]
    return (forward, list(arguments)), (backward, inner)


@pytest.mark.core
@every_case
@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)], ids=str)
def test_bad_arguments_of_the_raw_operators_raise_or_are_harmless(case, size):
    refused = 0
    for operator, good in raw_calls(case, size):
        operator(*good)  # by itself it is taken
        for position, argument in enumerate(good):
            for bad in spoiled(argument):
                trial = [*good[:position], bad, *good[position + 1 :]]
                try:
                    operator(*trial)
                except RuntimeError:
                    refused += 1
    assert refused >= 19


# What no other tensor of a call says, by the place in a call of the operator and of its backward
# operator: how many samples and channels there are, and how long the axes.
FREE = {
    "warp": ({0: "CS", 1: "S"}, {1: "S"}),
    "affine_warp": ({0: "NCS", 2: "S"}, {1: "NS"}),  # one image may be for all maps
    "deformation_energy": ({0: "NS"}, {3: "S"}),
    "jacobian_determinant": ({0: "NS"}, {}),
    "gradient_scale": ({0: "NCS"}, {1: "CS"}),
    "registration_objective": ({0: "S"}, {5: "S"}),
}


@pytest.mark.core
@every_case
@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)], ids=str)
def test_the_core_reads_no_tensor_that_is_smaller_than_another_says(case, size):
    refused = 0
    for (operator, good), free in zip(
        raw_calls(case, size), FREE.get(case.operator, ({}, {})), strict=True
    ):
        for k, tensor in enumerate(good):
            for axis in range(tensor.ndim if isinstance(tensor, torch.Tensor) else 0):
                if "NCSSS"[axis] not in free.get(k, ""):
                    smaller = tensor.narrow(axis, 0, tensor.shape[axis] - 1)
                    with pytest.raises(RuntimeError):
                        operator(*good[:k], smaller, *good[k + 1 :])
                    refused += 1
    assert refused > 1


@pytest.mark.core
def test_a_message_of_the_core_names_argument_demand_and_finding():
    u = torch.zeros(1, 3, 4, 4)
    with pytest.raises(
        RuntimeError,
        match=r"displacement must be \(N, 2, H, W\) or \(N, 3, Z, H, W\), got \[1, 3, 4, 4",
    ):
        torch.ops.diffreg.jacobian_determinant(u, "none")


def test_every_operator_is_in_the_table():
    public = {name for name in ops.__all__ if name + "_reference" in ops.__all__}
    assert {case.operator for case in CASES} == public


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
def test_the_short_way_leaves_tracing_to_torch():
    """A traced function holds the registered operator, which another process can load."""
    moving = torch.rand(1, 1, 5, 6)
    traced = torch.jit.trace(lambda u: ops.warp(moving, u), (0.3 * torch.rand(1, 2, 5, 6),))
    assert "diffreg::warp" in str(traced.graph)


def test_the_short_way_gives_what_the_registered_operator_gives():
    moving = torch.rand(1, 1, 5, 6, dtype=torch.float64)
    u = (0.3 * torch.rand(1, 2, 5, 6, dtype=torch.float64)).requires_grad_()
    short, long = ops.warp(moving, u), torch.ops.diffreg.warp(moving, u, "linear", "border")
    assert torch.equal(short, long)
    assert type(short.grad_fn).__name__ == "WarpBackward"
    for create_graph in (False, True):
        found, expected = (
            torch.autograd.grad(v.square().sum(), u, create_graph=create_graph, retain_graph=True)
            for v in (short, long)
        )
        assert torch.equal(found[0], expected[0])
    twice = [torch.autograd.grad(g[0].square().sum(), u)[0] for g in (found, expected)]
    assert torch.equal(*twice)
    with torch.inference_mode():
        assert torch.equal(ops.warp(moving, u), long)
