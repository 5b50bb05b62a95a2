"""Half types are storage: what is computed from them is float32. Dtypes may be mixed."""

import pytest
import torch
from cases import CASES, Calls
from torch._subclasses.fake_tensor import FakeTensorMode

from diffreg import ops
from diffreg.ops import _checks

HALVES = [torch.float16, torch.bfloat16]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
with_cuda = pytest.mark.parametrize(
    "case", [c for c in CASES if not c.masked], ids=lambda case: case.name
)


@every_case
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_half_is_float32_arithmetic_on_the_rounded_values(case, half):
    inputs = case.inputs(2, 2, (9, 11), half)
    value = case(*inputs)
    expected = case(*(tensor.float() for tensor in inputs))
    kept = half if case.operator in ("warp", "affine_warp") else torch.float32
    for out, wide in zip(value, expected, strict=True):
        assert out.dtype == kept
        assert torch.equal(out, wide.to(kept))


@every_case
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_the_gradient_has_the_dtype_of_its_input(case, half):
    inputs = case.inputs(2, 2, (9, 11), half)
    for tensor, has_gradient in zip(inputs, case.differentiable, strict=True):
        tensor.requires_grad_(has_gradient)
    wide = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in inputs]
    sum(out.float().sum() for out in case(*inputs)).backward()
    sum(out.to(half).float().sum() for out in case(*wide)).backward()
    for tensor, other in zip(inputs, wide, strict=True):
        if tensor.requires_grad:
            assert tensor.grad.dtype == tensor.dtype
            assert torch.equal(tensor.grad, other.grad.to(tensor.dtype))


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_image_and_displacement_may_differ_in_dtype(half):
    generator = torch.Generator().manual_seed(0)
    moving = torch.rand(1, 1, 8, 8, generator=generator)
    u = torch.randn(1, 2, 8, 8, generator=generator)
    assert torch.equal(ops.warp(moving, u.to(half)), ops.warp(moving, u.to(half).float()))
    mixed = ops.warp(moving.to(half), u)
    assert mixed.dtype == half
    assert torch.equal(mixed, ops.warp(moving.to(half).float(), u).to(half))
    assert ops.warp(moving, u.double()).dtype == torch.float32
    assert ops.correlation(moving.to(half), moving).dtype == torch.float32
    assert ops.correlation(moving.double(), moving).dtype == torch.float64


@pytest.fixture
def gpu(monkeypatch):
    """Tensors without values on a GPU for which there are kernels; of these the CPU knows no
    gradients, which tests/emulation/test_half_storage.py takes."""
    monkeypatch.setattr(_checks, "_CUDA_BUILT", True)
    with FakeTensorMode():
        yield torch.device("cuda")


def handed(record: Calls) -> list[set[torch.dtype]]:
    """For every operator called, the dtypes of the images and fields that it was given."""
    images = [[a for a in args if isinstance(a, torch.Tensor)] for _, args in record.calls]
    return [{a.dtype for a in given if a.ndim == 4 and a.shape[1] == 2} for given in images]


def on_gpu(case, gpu, *dtypes):
    shapes = [tensor.shape for tensor in case.inputs(2, 2, (9, 11), torch.float32)]
    of_maps = [torch.float32 if len(s) == 3 else d for s, d in zip(shapes, dtypes, strict=False)]
    return [torch.empty(s, dtype=d, device=gpu) for s, d in zip(shapes, of_maps, strict=True)]


@pytest.mark.core
@with_cuda
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_on_a_gpu_half_types_are_handed_over_as_they_are(gpu, case, half):
    with Calls() as record:
        value = case(*on_gpu(case, gpu, *3 * (half,)))
    assert record.calls
    assert all(given == {half} for given in handed(record))
    kept = half if case.operator in ("warp", "affine_warp") else torch.float32
    assert {out.dtype for out in value} == {kept}


@with_cuda
def test_on_a_gpu_other_dtypes_go_to_the_arithmetic_s(gpu, case):
    mixed = (torch.bfloat16, torch.float16), (torch.float32, torch.float16)
    single = 3 * (torch.float32,)
    is_pair = len(case.differentiable) == 2 and case.operator != "affine_warp"
    for dtypes in (single, *mixed) if is_pair else (single,):
        with Calls() as record:
            case(*on_gpu(case, gpu, *dtypes))
        assert record.calls
        assert all(given == {torch.float32} for given in handed(record))


@pytest.mark.core
def test_labels_on_a_gpu_are_warped_by_a_field_as_it_is_stored(gpu):
    labels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8, device=gpu)
    u = torch.zeros(1, 2, 8, 8, dtype=torch.float16, device=gpu)
    with Calls() as record:
        assert ops.warp(labels, u, "nearest").dtype == torch.uint8
    assert handed(record) == [{torch.float16}]


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_scales_and_masks_are_not_rounded_on_a_gpu(gpu, half):
    image = torch.zeros(1, 2, 8, 8, dtype=half, device=gpu)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool, device=gpu)
    with Calls() as record:
        ops.parallel_level_sets(image, image, None, 0.1, mask=mask)
    (_, (_, _, scale_warped, scale_fixed, _, weights)) = record.calls[-1]
    assert {t.dtype for t in (scale_warped, scale_fixed, weights)} == {torch.float32}


def test_nothing_changes_under_autocast():
    generator = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand(2, 1, 1, 16, 16, generator=generator)
    convolution = torch.nn.Conv2d(2, 2, 3, padding=1)

    def loss():
        u = convolution(torch.cat([moving, fixed], 1))
        warped = ops.warp(moving, u)
        terms = [ops.correlation(warped, fixed), ops.parallel_level_sets(warped, fixed)]
        return u, sum(terms) + sum(ops.deformation_energy(u))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        u, total = loss()
        assert u.dtype == torch.bfloat16
        assert total.dtype == torch.float32
    total.sum().backward()
    assert convolution.weight.grad.dtype == torch.float32
    rounded = convolution.weight.grad.clone()
    convolution.weight.grad = None
    loss()[1].sum().backward()
    torch.testing.assert_close(rounded, convolution.weight.grad, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool], ids=str)
def test_other_dtypes_are_refused(dtype):
    image = torch.zeros(1, 1, 4, 4, dtype=dtype)
    message = "warped must be float16, bfloat16, float32 or float64, got"
    with pytest.raises(TypeError, match=message):
        ops.correlation(image, image)
