"""Shapes, dtypes, strides, values and options of every operator, drawn by hypothesis.

DIFFREG_FUZZ_CASES sets how many cases each operator gets: 300 by default, 2,400 in all.

Ordinary numbers are multiples of 1/32: positions and determinants are then exact in every dtype, so
operator and reference take the same branch at every kink, and what differs is rounding alone.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from drawn_tensors import LAYOUTS, WILD, Steeper, laid_out
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from diffreg import ops

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("DIFFREG_FUZZ_CASES", "300"))
fuzz = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SIZES = {  # of an axis, by their number
    2: st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33]),
    3: st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 8, 9, 17]),
}
FLOATING = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
LABELS = st.sampled_from(
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
)
OPTIONS = {
    "warp": {
        "interpolation": st.sampled_from(["linear", "nearest", "cubic"]),
        "padding": st.sampled_from(["border", "zeros", "reflection"]),
    },
    "deformation_energy": {
        "spacing": st.sampled_from([None, 2.0, (1.0, 1.5, 0.5), (0.25, 3.0, 1.0)]),
        "penalty": st.sampled_from(["hyperelastic", "log2", "hinge", "relu"]),
    },
    "jacobian_determinant": {"reduce": st.sampled_from([None, "min", "mean", "bound"])},
    "correlation": {},
    "mutual_information": {"bins": st.sampled_from([5, 8, 32])},
    "local_correlation": {"window": st.sampled_from([1, 3, 5, 9, 31])},
    "parallel_level_sets": {
        "variant": st.sampled_from(["pls", "smooth", "ngf"]),
        "eps_warped": st.sampled_from([None, 0.1, 1.0]),
        "eps_fixed": st.sampled_from([None, 0.1, 1.0]),
    },
    "gradient_scale": {"eta": st.sampled_from([1.0, 0.25, 3.0])},
}
PAIRS = ("correlation", "mutual_information", "local_correlation", "parallel_level_sets")
MASKED = (*PAIRS, "gradient_scale")


@dataclass
class Case:
    """What an operator is called with; `wild` where numbers are not finite or ordinary."""

    operator: str
    inputs: list[torch.Tensor]
    options: dict[str, Any]
    seed: int
    wild: bool = False
    layouts: list[str] = field(default_factory=list)

    def _repr_pretty_(self, printer, cycle):
        """For hypothesis: shapes in place of numbers, of which a volume has too many to print."""
        tensors = [f"{list(x.shape)} {x.dtype} {x.stride()}" for x in self.inputs]
        options = {
            name: list(value.shape) if isinstance(value, torch.Tensor) else value
            for name, value in self.options.items()
        }
        printer.text(f"{self.operator}({', '.join(tensors)}, {options}), seed {self.seed}")

    def result(self) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """The operator's values and gradients."""
        return self._run(getattr(ops, self.operator), self.inputs, self.options)

    def reference(self) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Those of the reference, in float64; but rounding tells a constant image, and the box
        that an intensity between two of them falls into."""
        half = (torch.float16, torch.bfloat16)
        wide = torch.float64
        if self.operator in ("correlation", "mutual_information"):
            wide = torch.float32
            if any(image.dtype == torch.float64 for image in self.inputs):
                wide = torch.float64
        inputs = [x.to(wide) if x.is_floating_point() else x for x in self.inputs]
        options = dict(self.options)
        if options.get("mask") is not None:
            mask = options["mask"]
            mask = mask.to(torch.float32) if mask.dtype in half else mask
            options["mask"] = mask.to(wide)
        return self._run(getattr(ops, f"{self.operator}_reference"), inputs, options)

    def _run(self, function, inputs, options):
        leaves = [x.detach() for x in inputs]
        for leaf in leaves:
            leaf.requires_grad_(leaf.is_floating_point() and options.get("reduce") != "bound")
        values = function(*leaves, **options)
        values = [values] if isinstance(values, torch.Tensor) else list(values)
        generator = torch.Generator().manual_seed(self.seed)
        total = torch.zeros((), dtype=torch.float64)
        for value in values:
            upstream = torch.randint(-4, 5, value.shape, generator=generator) / 4
            if value.requires_grad:
                total = total + (value.double() * upstream).sum()
        gradients = [None] * len(leaves)
        if total.requires_grad:
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(total, wanted, allow_unused=True))
            gradients = [next(found) if leaf.requires_grad else None for leaf in leaves]
        return [value.detach() for value in values], gradients


def numbers(draw, shape, dtype, largest):
    """Multiples of 1/32 up to `largest`, of one of several kinds."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["any", "any", "any", "small", "constant", "zero", "whole"]))
    reach = {"small": 2, "zero": 0, "constant": 0}.get(kind, int(32 * largest))
    values = torch.randint(-reach, reach + 1, shape, generator=generator) / 32
    if kind == "constant":
        values = values + draw(st.integers(-8, 8)) / 8
    if kind == "whole":
        values = values.round()
    return values.to(torch.float64).to(dtype)


@st.composite
def cases(draw, operator):
    samples, channels = draw(st.sampled_from([0, 1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2, 3]))
    dimensions = draw(st.sampled_from([2, 3]))
    sizes = SIZES[dimensions]
    shape = tuple(draw(sizes) for _ in range(dimensions))
    options = {name: draw(values) for name, values in OPTIONS[operator].items()}
    if isinstance(options.get("spacing"), tuple):
        options["spacing"] = options["spacing"][:dimensions]
    if options.get("reduce"):  # over no cell it raises
        assume(0 not in shape and sum(size > 1 for size in shape) > 1)
    if operator == "warp":
        size = tuple(draw(sizes.filter(bool)) for _ in range(dimensions))
        dtypes = LABELS | FLOATING if options["interpolation"] == "nearest" else FLOATING
        dtype = draw(dtypes)
        inputs = [numbers(draw, (samples, channels, *size), dtype, 4)]
        inputs += [
            numbers(
                draw, (samples, dimensions, *shape), draw(FLOATING), draw(st.sampled_from([1, 4]))
            )
        ]
    elif operator in PAIRS:
        inputs = [numbers(draw, (samples, channels, *shape), draw(FLOATING), 1) for _ in range(2)]
        if draw(st.integers(0, 9)) == 0:
            inputs[1] = inputs[0].clone()
    elif operator == "gradient_scale":
        inputs = [numbers(draw, (samples, channels, *shape), draw(FLOATING), 1)]
    else:
        reach = draw(st.sampled_from([0.25, 4]))
        inputs = [numbers(draw, (samples, dimensions, *shape), draw(FLOATING), reach)]
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in inputs]
    wild = draw(st.integers(0, 7)) == 0
    if wild:
        floating = [x for x in inputs if x.is_floating_point() and x.numel()]
        for x in floating:
            at = draw(st.integers(0, x.numel() - 1))
            x.view(-1)[at] = torch.tensor(draw(st.sampled_from(WILD)), dtype=torch.float64).to(
                x.dtype
            )
    inputs = [laid_out(x, layout) for x, layout in zip(inputs, layouts, strict=True)]
    if operator in MASKED and draw(st.booleans()):
        kinds = st.sampled_from(
            [torch.bool, torch.uint8, torch.float16, torch.float32, torch.float64]
        )
        mask = numbers(draw, (samples, 1, *shape), torch.float64, 1).abs()
        kind = draw(kinds)
        mask = (mask > 0.5).to(kind) if kind in (torch.bool, torch.uint8) else mask.to(kind)
        options["mask"] = laid_out(mask, draw(st.sampled_from(LAYOUTS)))
    return Case(operator, inputs, options, draw(st.integers(0, 2**31)), wild, layouts)


def check(case):
    """Raises unless operator and reference agree; of wild numbers, that both answer."""
    values, gradients = case.result()
    expected, expected_gradients = case.reference()
    compared = [*zip(values, expected, strict=True)]
    compared += [*zip(gradients, expected_gradients, strict=True)]
    wide = all(x.dtype == torch.float64 for x in case.inputs if x.is_floating_point())
    for number, (found, right) in enumerate(compared):
        if right is None or found is None:
            # No gradient and one that is zero are the same.
            assert all(g is None or not g.any() or case.wild for g in (found, right))
            continue
        assert found.shape == right.shape
        if number >= len(values):
            assert found.dtype == case.inputs[number - len(values)].dtype
        if case.wild:
            continue
        right = right.to(torch.float64)
        if not found.is_floating_point():
            assert torch.equal(found.to(torch.float64), right)
            continue
        size = right.abs().max().item() if right.numel() else 0.0
        # A similarity's gradient is a difference of larger terms, and so is one through a cubic: at
        # its minimum, or of a flat image, they cancel.
        cancels = case.operator in MASKED or case.options.get("interpolation") == "cubic"
        size = max(size, 0.05 if cancels else 0.0)
        part = (1e-9 if wide else 2e-4) + 2 * (
            torch.finfo(found.dtype).eps if found.dtype in (torch.float16, torch.bfloat16) else 0
        )
        torch.testing.assert_close(
            found.to(torch.float64), right, rtol=part, atol=part * size + 1e-30, equal_nan=True
        )
    if case.operator == "warp" and case.wild:
        check_unknown_positions(case, values[0])


def check_unknown_positions(case, warped):
    """Where a displacement is not finite, so is no warped value; a label there is 0."""
    displacement = case.inputs[1]
    unknown = ~torch.isfinite(displacement).all(1, keepdim=True)
    unknown = unknown.expand_as(warped)
    if warped.is_floating_point():
        assert torch.isnan(warped[unknown]).all()
    else:
        assert not warped[unknown].any()


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("operator", OPTIONS)
def test_it_agrees_with_its_reference(operator):
    @fuzz
    @given(cases(operator))
    def agree(case):
        check(case)

    agree()


@pytest.mark.parametrize("operator", OPTIONS)
@pytest.mark.parametrize("part", ["value", "gradient"])
def test_a_wrong_operator_is_found(operator, part, monkeypatch):
    """A twentieth too much, in value or in gradient, is seen within 60 cases."""
    right = getattr(ops, operator)

    def longer(x):
        return x * 1.05

    def fault(x):
        return longer(x) if part == "value" else Steeper.apply(x, longer)

    def wrong(*args, **options):
        result = right(*args, **options)
        values = [result] if isinstance(result, torch.Tensor) else list(result)
        off = [fault(v) if v.is_floating_point() else v for v in values]
        return off[0] if isinstance(result, torch.Tensor) else type(result)(*off)

    monkeypatch.setattr(ops, operator, wrong)

    @settings(fuzz, max_examples=60, report_multiple_bugs=False, phases=[Phase.generate])
    @given(cases(operator))
    def agree(case):
        check(case)

    with pytest.raises(AssertionError):
        agree()


def broken(draw, tensor):
    """A tensor that no operator may take in that place."""
    kind = draw(st.sampled_from(["axis", "flat", "complex", "no tensor", "samples", "none"]))
    return {
        "axis": lambda: tensor[..., None].expand(*tensor.shape, 2),
        "flat": lambda: tensor.flatten(),
        "complex": lambda: tensor.to(torch.complex64),
        "no tensor": lambda: tensor.tolist(),
        "samples": lambda: torch.zeros(len(tensor) + 1, 5, 3, 3),
        "none": lambda: None,
    }[kind]()


@pytest.mark.parametrize("operator", OPTIONS)
def test_wrong_arguments_are_refused_in_words(operator):
    @settings(fuzz, max_examples=max(CASES // 10, 10))
    @given(cases(operator), st.data())
    def refused(case, data):
        which = data.draw(st.integers(0, len(case.inputs) - 1))
        inputs = list(case.inputs)
        wrong = broken(data.draw, inputs[which])
        # An image of any dtype can be taken by its nearest voxel; one alone has any size, and may
        # be a volume.
        nearest = case.options.get("interpolation") == "nearest" and which == 0
        alone = operator == "gradient_scale" and "mask" not in case.options
        if isinstance(wrong, torch.Tensor):
            assume(not (nearest and wrong.is_complex()))
            assume(not (alone and not wrong.is_complex() and wrong.ndim in (4, 5)))
        inputs[which] = wrong
        with pytest.raises((ValueError, TypeError)) as error:
            getattr(ops, operator)(*inputs, **case.options)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300

    refused()
