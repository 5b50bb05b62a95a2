"""The CUDA kernels, run on the CPU: they agree with the CPU operators, whatever the sizes."""

import itertools
import re

import pytest
import torch
from emulation import comparison
from wrong_options import CASES

from diffreg.ops import _self_test

pytestmark = pytest.mark.slow

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", comparison.CASES)
def test_kernels_agree_with_the_cpu(emulation, name, dtype):
    case = comparison.CASES[name]
    emulation.set()
    full = name in comparison.PLAIN and dtype is torch.float64
    for shape in case.shapes(dtype, full):
        comparison.compare(emulation, case, shape, dtype)


@pytest.mark.parametrize("name", [name for name in comparison.CASES if "hidden" in name])
def test_what_a_mask_hides_reaches_no_result_but_the_warped_image(emulation, name):
    emulation.set()
    case = comparison.CASES[name]
    shape = comparison.Shape(2, 2, case.size((33, 30), (4, 9, 33)))
    images = [t for t in case.arguments(shape, torch.float64) if isinstance(t, torch.Tensor)]
    assert not all(image.isfinite().all() for image in images)

    def emulated(operator, arguments):
        return comparison.as_tuple(getattr(emulation.ops, operator)(*arguments))

    for operator, arguments in comparison.calls(case, shape, torch.float64, emulated):
        found = list(emulated(operator, arguments))
        if operator == "registration_objective":
            del found[5]
        assert all(t.isfinite().all() for t in found), operator


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("name", comparison.PLAIN)
def test_more_tiles_than_a_launch_may_have_blocks(emulation, name, limit):
    emulation.set(grid_limit=limit)
    case = comparison.CASES[name]
    comparison.compare(emulation, case, case.shapes(torch.float64)[-1], torch.float64)


@pytest.mark.parametrize("name", comparison.PLAIN)
def test_nothing_is_launched_for_empty_tensors(emulation, name):
    case = comparison.CASES[name]
    for samples, channels, size in ((0, 2, (4, 5)), (2, 2, (0, 5)), (2, 0, (4, 5))):
        if case.operator == "warp" and 0 in size:
            continue
        emulation.set()
        shape = comparison.Shape(samples, channels, case.size(size, (3, *size)))
        comparison.compare(emulation, case, shape, torch.float32)
        launched = set(emulation.traffic()) - {"memset"}
        has_energies = ("deformation_energy", "registration_objective")
        field_only = case.operator in (*has_energies, "jacobian_determinant")
        assert not launched or (field_only and channels == 0)


@pytest.mark.parametrize("name", comparison.PLAIN)
def test_views_and_broadcast_gradients_are_read_right(emulation, name):
    case = comparison.CASES[name]
    emulation.set()
    shape = comparison.Shape(2, 2, case.size((9, 13), (3, 4, 5)))
    strided = type(case)(
        **{
            **vars(case),
            "inputs": lambda s, d: tuple(
                t.transpose(0, -1).contiguous().transpose(0, -1) for t in case.inputs(s, d)
            ),
        }
    )
    comparison.compare(emulation, strided, shape, torch.float64)


def test_nearest_copies_every_dtype(emulation):
    emulation.set()
    dtypes = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex128)
    paddings = ("border", "zeros", "reflection")
    for size, dtype, padding in itertools.product(((9, 13), (3, 9, 13)), dtypes, paddings):
        u = comparison.fields(4.0)(comparison.Shape(1, 1, size), torch.float32)[0]
        u[(0, 0, *(1 for _ in size))] = torch.nan
        moving = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
        arguments = ((100 * moving).to(dtype), u, "nearest", padding)
        ours, theirs = emulation.ops.warp(*arguments), torch.ops.diffreg.warp(*arguments)
        bytes_of = [t.contiguous().view(torch.uint8) for t in (ours, theirs)]
        assert torch.equal(*bytes_of), (size, dtype, padding)


def test_a_constant_image_has_no_correlation(emulation):
    emulation.set()
    constant, other = torch.full((1, 1, 40, 70), 0.3), torch.rand(1, 1, 40, 70)
    value, moments = emulation.ops.correlation(constant, other, None)
    assert value.item() == 1
    gradients = emulation.ops.correlation_backward(
        torch.ones(1), moments, constant, other, None, True, True
    )
    assert all(not g.any() for g in gradients)


def objective(images, u, mixture, *asked, mask=None):
    scales = (torch.full((len(u),), 0.1, dtype=u.dtype),) * 2
    factors = [mixture.get(name, 0.0) for name in comparison.MEASURES]
    options = (factors, [60.0, 1.0, 30.0, 3.0], "border", [1.0, 1.0], "hyperelastic", 0.2)
    return (*images, u, *scales, mask, *options, *asked)


def test_the_objective_s_strips_are_long_where_there_are_many(emulation):
    emulation.set()
    shape = comparison.Shape(1, 1, (17, 30_720))
    images = comparison.images(2)(shape, torch.float32)
    (u,) = comparison.fields(0.5)(shape, torch.float32)
    arguments = objective(images, u, {"ncc": 1.0, "pls": 0.3}, True, True)
    ours = emulation.ops.registration_objective(*arguments)
    theirs = torch.ops.diffreg.registration_objective(*arguments)
    comparison.check("registration_objective", ours, theirs, torch.float32)


def test_equal_images_do_not_pull(emulation):
    emulation.set()
    image = 300 + torch.rand(2, 2, 20, 40, generator=torch.Generator().manual_seed(0))
    arguments = objective((image, image), torch.zeros(2, 2, 20, 40), {"ncc": 1.0})
    terms = emulation.ops.registration_objective(*arguments, True, False)
    assert not torch.cat(terms[:5]).any() and not terms[-1].any()


def test_a_kernel_more_is_launched_for_what_is_of_the_whole_image(emulation):
    """One for value and gradient, one more for the moments or the mask's weights."""
    shape = comparison.Shape(1, 1, (9, 13))
    images = comparison.images(2)(shape, torch.float32)
    (u,), mask = comparison.fields(0.5)(shape, torch.float32), torch.ones(1, 1, 9, 13)
    for mixture, weights, expected in (
        ({"pls": 1.0, "ssd": 1.0}, None, 1),
        ({"pls": 1.0}, mask, 2),
        ({"ncc": 1.0}, None, 2),
        ({"ncc": 1.0, "ngf": 1.0}, mask, 2),
    ):
        arguments = objective(images, u, mixture, mask=weights)
        one = torch.ones(1)
        for operator, call, most in (
            ("registration_objective", (*arguments, False, True), 1),
            ("registration_objective", (*arguments, True, True), expected),
            ("registration_objective_backward", (one, *4 * (None,), *arguments), expected),
        ):
            emulation.set()
            getattr(emulation.ops, operator)(*call)
            launches = emulation.traffic()
            launches.pop("memset", None)
            assert sum(kernel["launches"] for kernel in launches.values()) == most


def test_errors_name_the_argument(emulation):
    field = torch.zeros(1, 2, 4, 5)
    with pytest.raises(RuntimeError, match=r"displacement must be \(N, 2, H, W\)"):
        emulation.ops.warp(torch.zeros(1, 1, 4, 5), field[:, :1], "linear", "border")
    with pytest.raises(RuntimeError, match="mask has the wrong shape"):
        image = torch.zeros(1, 1, 4, 5)
        emulation.ops.correlation(image, image, image[..., 1:])
    with pytest.raises(RuntimeError, match="local_correlation is no part of this kernel"):
        arguments = objective((image, image), field, {"lncc": 1.0}, True, True)
        emulation.ops.registration_objective(*arguments)
    with pytest.raises(RuntimeError, match="must be float64, float32, float16 or bfloat16"):
        emulation.ops.jacobian_determinant(field.int(), "min")


@pytest.mark.parametrize(("operator", "arguments", "message"), CASES, ids=lambda v: str(v)[:40])
def test_a_wrong_option_is_told_the_right_ones_as_on_the_cpu(
    emulation, operator, arguments, message
):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        getattr(emulation.ops, operator)(*arguments)


def test_the_first_use_test_passes_right_kernels_and_names_a_wrong_one(emulation):
    emulation.set()
    _self_test.compare(torch.device("cpu"), emulation.ops, "the emulation")

    class Wrong:
        def __getattr__(self, name):
            right = getattr(emulation.ops, name)
            return (lambda *a: 1.01 * right(*a)) if name == "gradient_scale" else right

    with pytest.raises(RuntimeError, match="gradient_scale kernel computes wrongly on sm_00"):
        _self_test.compare(torch.device("cpu"), Wrong(), "sm_00")


def test_the_first_use_test_covers_what_is_stored_in_16_bits(emulation):
    class Wrong:
        def __getattr__(self, name):
            right = getattr(emulation.ops, name)
            if name != "jacobian_determinant_backward":
                return right
            return lambda *a: right(*a) * (1.01 if a[1].dtype == torch.bfloat16 else 1)

    message = r"jacobian_determinant_backward kernel computes wrongly on sm_00 \(torch.bfloat16\)"
    emulation.set()
    with pytest.raises(RuntimeError, match=message):
        _self_test.compare(torch.device("cpu"), Wrong(), "sm_00")
