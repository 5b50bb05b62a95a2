"""The CUDA kernels, run on the CPU: they agree with the CPU operators, whatever the sizes."""

import itertools
import re
import subprocess
from dataclasses import replace

import pytest
import torch
from emulation import case_table, comparison
from emulation.build import ROOT
from emulation.emulated import ENOUGH_TILES, GRID_LIMIT
from wrong_options import CASES

from diffreg.ops import _self_test

pytestmark = pytest.mark.slow

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", case_table.CASES)
def test_kernels_agree_with_the_cpu(emulation, name, dtype):
    case = case_table.CASES[name]
    emulation.set()
    full = name in case_table.PLAIN and dtype is torch.float64
    for shape in case.shapes(dtype, full):
        comparison.compare(emulation, case, shape, dtype)


@pytest.mark.parametrize("name", [name for name in case_table.CASES if "hidden" in name])
def test_what_a_mask_hides_reaches_no_result_but_the_warped_image(emulation, name):
    emulation.set()
    case = case_table.CASES[name]
    shape = case_table.Shape(2, 2, case.size((33, 30), (4, 9, 33)))
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
@pytest.mark.parametrize("name", case_table.PLAIN)
def test_more_tiles_than_a_launch_may_have_blocks(emulation, name, limit):
    emulation.set(grid_limit=limit)
    case = case_table.CASES[name]
    comparison.compare(emulation, case, case.shapes(torch.float64)[-1], torch.float64)


@pytest.mark.parametrize(
    ("case", "shape"), case_table.with_many_tiles(), ids=lambda value: getattr(value, "name", "")
)
def test_more_tiles_in_a_sample_than_a_block_has_threads(emulation, case, shape):
    emulation.set()
    comparison.compare(emulation, case, shape, torch.float64)


@pytest.mark.parametrize("limit", [1, GRID_LIMIT])
def test_more_samples_than_a_block_has_threads(emulation, limit):
    emulation.set(grid_limit=limit)
    case, shape = case_table.CASES["objective-ssd"], case_table.Shape(257, 1, (2, 3))
    arguments = case.arguments(shape, torch.float64)
    upstream = [case_table.uniform((257,), torch.float64, k) for k in range(5)]
    for operator, call in (
        ("registration_objective", (*arguments, True, False)),
        ("registration_objective_backward", (*upstream, *arguments)),
    ):
        ours, theirs = (
            comparison.as_tuple(getattr(ops, operator)(*call))
            for ops in (emulation.ops, torch.ops.diffreg)
        )
        comparison.check(operator, ours, theirs, torch.float64)


def test_more_voxels_in_a_plane_than_a_block_squares(emulation):
    emulation.set()
    case = replace(case_table.CASES["objective-ssd"], masked=True)
    comparison.compare(emulation, case, case_table.Shape(2, 2, (65, 67)), torch.float64)


@pytest.mark.parametrize("name", case_table.MASKED)
def test_a_sample_of_which_nothing_counts(emulation, name):
    emulation.set()
    case = case_table.blank(case_table.CASES[name])
    shape = case_table.Shape(2, 2, case.size((9, 33), (3, 4, 9)))
    comparison.compare(emulation, case, shape, torch.float64)


@pytest.mark.parametrize("name", case_table.PLAIN)
def test_nothing_is_launched_for_empty_tensors(emulation, name):
    case = case_table.CASES[name]
    for samples, channels, size in ((0, 2, (4, 5)), (2, 2, (0, 5)), (2, 0, (4, 5))):
        if case.operator == "warp" and 0 in size:
            continue
        emulation.set()
        shape = case_table.Shape(samples, channels, case.size(size, (3, *size)))
        comparison.compare(emulation, case, shape, torch.float32)
        launched = set(emulation.traffic()) - {"memset"}
        has_energies = ("deformation_energy", "registration_objective")
        field_only = case.operator in (*has_energies, "jacobian_determinant")
        assert not launched or (field_only and channels == 0)


@pytest.mark.parametrize("name", case_table.PLAIN)
def test_views_and_broadcast_gradients_are_read_right(emulation, name):
    case = case_table.CASES[name]
    emulation.set()
    shape = case_table.Shape(2, 2, case.size((9, 13), (3, 4, 5)))
    strided = type(case)(
        **{
            **vars(case),
            "inputs": lambda s, d: tuple(
                t.transpose(0, -1).contiguous().transpose(0, -1) for t in case.inputs(s, d)
            ),
        }
    )
    comparison.compare(emulation, strided, shape, torch.float64)


@pytest.mark.parametrize("name", case_table.PLAIN)
def test_where_tensors_start_in_memory_changes_no_bit(emulation, name):
    case = case_table.CASES[name]
    emulation.set()
    shape = case_table.Shape(2, 2, case.size((16, 80), (4, 8, 16)))

    def emulated(operator, arguments):
        return comparison.as_tuple(getattr(emulation.ops, operator)(*arguments))

    for operator, arguments in comparison.calls(case, shape, torch.float32, emulated):
        expected = emulated(operator, arguments)
        for moved in case_table.each_beside_16_bytes(arguments):
            for own, other in zip(emulated(operator, moved), expected, strict=True):
                assert torch.equal(own.view(torch.uint8), other.view(torch.uint8)), operator


def test_nearest_copies_every_dtype(emulation):
    emulation.set()
    dtypes = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex128)
    paddings = ("border", "zeros", "reflection")
    for size, dtype, padding in itertools.product(((9, 13), (3, 9, 13)), dtypes, paddings):
        u = case_table.fields(4.0)(case_table.Shape(1, 1, size), torch.float32)[0]
        u[(0, 0, *(1 for _ in size))] = torch.nan
        moving = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
        arguments = ((100 * moving).to(dtype), u, "nearest", padding)
        ours, theirs = emulation.ops.warp(*arguments), torch.ops.diffreg.warp(*arguments)
        bytes_of = [t.contiguous().view(torch.uint8) for t in (ours, theirs)]
        assert torch.equal(*bytes_of), (size, dtype, padding)


def test_nearest_by_a_map_alone_lands_where_a_double_does(emulation):
    emulation.set()
    image = torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4)
    matrix = torch.eye(2, 3, dtype=torch.float64).unsqueeze(0)
    matrix[..., -1] = 0.5 - 2**-40
    arguments = (image, matrix, None, [3, 4], "nearest", "border")
    assert torch.equal(emulation.ops.affine_warp(*arguments), image)


def test_a_constant_image_has_no_correlation(emulation):
    emulation.set()
    constant, other = torch.full((1, 1, 40, 70), 0.3), torch.rand(1, 1, 40, 70)
    value, moments = emulation.ops.correlation(constant, other, None)
    assert value.item() == 1
    gradients = emulation.ops.correlation_backward(
        torch.ones(1), moments, constant, other, None, True, True
    )
    assert all(not g.any() for g in gradients)
    rounded = constant + 2**-25 * other  # to one float or the next
    assert rounded.unique().numel() == 2
    arguments = objective((rounded, other), torch.zeros(1, 2, 40, 70), {"ncc": 1.0})
    terms = emulation.ops.registration_objective(*arguments, True, False)
    assert terms[1].item() == 1 and not terms[-1].any()


def objective(images, u, mixture, *asked, mask=None):
    scales = (torch.full((len(u),), 0.1, dtype=u.dtype),) * 2
    factors = [mixture.get(name, 0.0) for name in case_table.MEASURES]
    options = (factors, [60.0, 1.0, 30.0, 3.0], "border", [1.0, 1.0], "hyperelastic", 0.2)
    return (*images, u, *scales, mask, *options, *asked)


MARCHES = ("energy-hyperelastic", "determinant-min", "pls-hidden", "scale-hidden")


@pytest.mark.parametrize("name", [*MARCHES, *(f"{name}-3d" for name in MARCHES)])
def test_long_strips_agree_with_the_cpu(emulation, name):
    emulation.set(enough_tiles=0)
    case = case_table.CASES[name]
    long = replace(case, tile=(31, case.tile[1]))
    for shape in long.shapes(torch.float64, full=name in case_table.PLAIN):
        comparison.compare(emulation, case, shape, torch.float64)


@pytest.mark.parametrize("name", [*MARCHES, *(f"{name}-3d" for name in MARCHES)])
def test_strips_are_short_where_there_are_few_and_long_where_there_are_many(emulation, name):
    case = case_table.CASES[name]
    size = case.size((60, 480), (60, 6, 20))

    def blocks(samples: int, enough: int) -> list[int]:
        emulation.set(enough_tiles=enough)
        comparison.results(emulation, case, case_table.Shape(samples, 1, size), torch.float32)
        counted = emulation.traffic()
        for other in ("memset", "mask_total/mask_total_kernel"):
            counted.pop(other, None)
        return [kernel["blocks"] for kernel in counted.values()]

    long = blocks(1, 0)
    assert all(few > 2 * one for few, one in zip(blocks(1, ENOUGH_TILES), long, strict=True))
    assert blocks(8, 8) == [8 * one for one in long] != [8 * one for one in blocks(1, 8)]


@pytest.mark.parametrize("name", ["pls-mask", "scale-mask", "pls-3d", "scale-3d"])
def test_rows_that_no_pack_of_columns_is_aligned_with(emulation, name):
    emulation.set()
    case = case_table.CASES[name]
    shape = case_table.Shape(2, 2, case.size((9, 132), (3, 4, 12)))

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    inputs = {"inputs": lambda s, d: tuple(map(moved, case.inputs(s, d)))}
    comparison.compare(emulation, type(case)(**{**vars(case), **inputs}), shape, torch.float32)


@pytest.mark.parametrize("masked", [False, True])
def test_no_gradient_passes_where_the_floor_holds(emulation, masked):
    emulation.set()
    image = case_table.uniform((3, 2, 9, 132), torch.float64, 1)
    image[1] = 3.0
    mask = case_table.uniform((3, 1, 9, 132), torch.float64, 2) if masked else None
    arguments = (torch.ones(3, dtype=torch.float64), image, 1.0, mask)
    ours = emulation.ops.gradient_scale_backward(*arguments)
    assert not ours[1].any()
    torch.testing.assert_close(ours, torch.ops.diffreg.gradient_scale_backward(*arguments))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(9, 132), (4, 9, 66)], ids=str)
def test_a_gradient_passes_a_little_above_the_floor_and_not_below(emulation, size, masked):
    """The backward pass measures the image once more, for that alone."""
    emulation.set()
    noise = case_table.uniform((4, 3, *size), torch.float64, 1)
    mask = case_table.uniform((4, 1, *size), torch.float64, 2) if masked else None
    floor = 1e-6 * 3
    factor = floor / torch.ops.diffreg.gradient_scale(noise, 1.0, mask)
    factor *= torch.tensor([0.98, 1.02, 0.98, 1.02])
    image = factor.view(-1, *(1 for _ in noise.shape[1:])) * noise - 3
    arguments = (torch.ones(4, dtype=torch.float64), image, 1.0, mask)
    ours = emulation.ops.gradient_scale_backward(*arguments)
    assert [g.any().item() for g in ours] == [False, True, False, True]
    torch.testing.assert_close(ours, torch.ops.diffreg.gradient_scale_backward(*arguments))


def test_a_gradient_times_1_is_not_read(emulation):
    emulation.set(counting=True)
    gradient = torch.rand(3, 2, 40, 70, generator=torch.Generator().manual_seed(0))
    expected = gradient.clone()
    emulation.ops.registration_objective_scale(gradient, torch.ones(1).expand(3))
    (counted,) = emulation.traffic().values()
    assert torch.equal(gradient, expected) and counted["store_sectors"] == 0
    factor = torch.tensor([1.0, 0.5, torch.nan])
    for ops in emulation.ops, torch.ops.diffreg:
        found = gradient.clone()
        ops.registration_objective_scale(found, factor)
        expected = gradient * factor.reshape(3, 1, 1, 1)
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
        ops.registration_objective_scale(found, torch.tensor([0.0, 1.0, 0.0]))
        assert found[1].any() and not found[0].any() and not found[2].any()


@pytest.mark.parametrize("mixture", [{"ssd": 1.0}, {"ncc": 1.0}, {"lncc": 1.0}, {"pls": 1.0}])
def test_a_sample_that_nobody_weighs_has_no_gradient(emulation, mixture):
    """Though its image is NaN; the other one has that of the CPU."""
    emulation.set()
    shape = case_table.Shape(2, 2, (65, 67))  # more than a block clears
    moving, *others = case_table.images(2)(shape, torch.float32)
    moving[0, :, 4::8, 5:] = torch.nan
    (u,) = case_table.fields(0.5)(shape, torch.float32)
    arguments = objective([moving, *others], u, mixture)
    upstream = (None, torch.tensor([0.0, 1.0]), None, torch.ones(2), None)
    found, expected = (
        ops.registration_objective_backward(*upstream, *arguments)
        for ops in (emulation.ops, torch.ops.diffreg)
    )
    assert found.isfinite().all() and found[0].any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_similarity_that_weighs_nothing_has_no_gradient(emulation):
    """Though the image is NaN: the gradient is that of the energies."""
    emulation.set()
    shape = case_table.Shape(2, 1, (9, 13))
    moving, *others = case_table.images(2)(shape, torch.float32)
    (u,) = case_table.fields(0.5)(shape, torch.float32)
    images = torch.full_like(moving, torch.nan), *others
    arguments = [*objective(images, u, {"ssd": 1.0}, True, False)]
    arguments[7] = [0.0, *arguments[7][1:]]  # the weights
    found, expected = (
        ops.registration_objective(*arguments)[-1] for ops in (emulation.ops, torch.ops.diffreg)
    )
    assert found.isfinite().all() and found.any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_equal_images_do_not_pull(emulation):
    emulation.set()
    image = 300 + torch.rand(2, 2, 20, 40, generator=torch.Generator().manual_seed(0))
    arguments = objective((image, image), torch.zeros(2, 2, 20, 40), {"ncc": 1.0})
    terms = emulation.ops.registration_objective(*arguments, True, False)
    assert not torch.cat(terms[:5]).any() and not terms[-1].any()


@pytest.mark.parametrize(
    ("mixture", "launches"),
    [
        ({"ssd": 1.0}, (4, 6, 6)),
        ({"pls": 1.0}, (4, 7, 6)),
        ({"ncc": 1.0, "lncc": 0.2}, (6, 10, 10)),
    ],
    ids=str,
)
def test_an_objective_launches_what_it_is_made_of_and_no_more(emulation, mixture, launches):
    """For the value; with the gradient: what goes to the parts, and warp's; for the gradient, where
    samples may have none, one more."""
    shape = case_table.Shape(1, 1, (9, 13))
    images = case_table.images(2)(shape, torch.float32)
    (u,), one = case_table.fields(0.5)(shape, torch.float32), torch.ones(1)
    arguments = objective(images, u, mixture)
    calls = (
        ("registration_objective", (*arguments, False, True)),
        ("registration_objective", (*arguments, True, True)),
        ("registration_objective_backward", (one, *4 * (None,), *arguments)),
    )
    for (operator, call), expected in zip(calls, launches, strict=True):
        emulation.set()
        getattr(emulation.ops, operator)(*call)
        counted = emulation.traffic()
        counted.pop("memset", None)
        assert sum(kernel["launches"] for kernel in counted.values()) == expected, counted


def test_errors_name_the_argument(emulation):
    field = torch.zeros(1, 2, 4, 5)
    with pytest.raises(RuntimeError, match=r"displacement must be \(N, 2, H, W\)"):
        emulation.ops.warp(torch.zeros(1, 1, 4, 5), field[:, :1], "linear", "border")
    with pytest.raises(RuntimeError, match="mask has the wrong shape"):
        image = torch.zeros(1, 1, 4, 5)
        emulation.ops.correlation(image, image, image[..., 1:])
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


def test_the_first_use_test_runs_every_kernel_that_is_compiled(emulation, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    code = pytest.importorskip("cuda_code")
    launched = set()
    for storage in _self_test._ALLOWED:
        arithmetic = case_table.ARITHMETIC.get(storage, storage)
        for name, arguments in _self_test._calls(storage, arithmetic):
            emulation.set()
            getattr(emulation.ops, name)(*arguments)
            traffic = emulation.traffic()
            traffic.pop("memset", None)
            launched |= {kernel["instance"] for kernel in traffic.values()}
    names = subprocess.run(
        ["c++filt", "-t"], input="\n".join(launched), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    compiled = set(code.read_resources(ROOT / "bench" / "results" / "cuda_resources.tsv"))
    missing = compiled - {code.short(name[name.index("diffreg::") :]) for name in names}
    # Of a kernel's two launches in one call the second is named: an energy's cells.
    first = "deformation_energy/energy_kernel<3, double, double, "
    assert all(name.startswith(first) for name in missing) and len(missing) <= 1, missing


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
