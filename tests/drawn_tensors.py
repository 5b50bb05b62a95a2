"""Tensors drawn from a seed: sizes, dtypes, strides, numbers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

HALVES = (torch.float16, torch.bfloat16)
FLOATING = (*HALVES, torch.float32, torch.float64)
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
WEIGHTS = (torch.bool, torch.uint8, torch.float16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "transposed", "channels_last", "every_second", "inside", "expanded")
WILD = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-42, 65504.0, 2.0**31, -(2.0**63))
SMALL = (1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9)  # voxels along an axis
ROW = (*SMALL, 7, 8, 9, 10, 15, 16, 17, 18, 23, 24, 25, 31, 32, 33, 34, 47, 48, 49, 63, 64, 65, 66)
LARGE = {2: (40, 130), 3: (9, 17, 40)}


def laid_out(tensor, layout):
    """The same numbers with other strides."""
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "channels_last":
        volume = tensor.ndim == 5
        order = torch.channels_last_3d if volume else torch.channels_last
        return tensor.contiguous(memory_format=order)
    if layout == "every_second":
        wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "inside":
        larger = tensor.new_zeros([size + 2 for size in tensor.shape])
        inner = larger[(slice(1, -1),) * tensor.ndim]
        return inner.copy_(tensor)
    if layout == "expanded" and len(tensor):
        return tensor[:1].expand(tensor.shape)
    return tensor


@dataclass(frozen=True)
class Slot:
    """A tensor (N, *shape) that an operator takes; numbers up to `reach`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    reach: float = 1.0
    kind: str = "image"  # or "map", "weights", "scale"


class Draw:
    """Choices and numbers from a seed."""

    def __init__(self, *seed: int) -> None:
        self.generator = np.random.Generator(np.random.SFC64(seed))
        self.random = random.Random(int(self.generator.integers(2**62))).random  # much faster
        self.rough = False  # numbers whose products and sums round

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def of(self, *choices):
        return choices[self.below(len(choices))]

    def one_in(self, n: int) -> bool:
        return self.below(n) == 0

    def size(self, dimensions: int, empty: bool = True) -> tuple[int, ...]:
        if self.one_in(60):
            return LARGE[dimensions]
        row = 1 + self.below(67) if self.one_in(3) else self.of(*ROW)
        size = [*(self.of(*SMALL) for _ in range(dimensions - 1)), row]
        if self.one_in(3):
            size = size[::-1] if self.one_in(2) else [*size[1:], size[0]]
        if empty and self.one_in(40):
            size[self.below(dimensions)] = 0
        return tuple(size)

    def dtypes(self, number: int) -> list[torch.dtype]:
        if self.one_in(2):
            return [self.of(*FLOATING)] * number
        return [self.of(*FLOATING) for _ in range(number)]

    def multiples(self, shape: Sequence[int], reach: float) -> torch.Tensor:
        """Of 1/32, of one of several kinds, in float64; or rough ones."""
        if self.rough:
            return torch.from_numpy(reach * (2 * self.generator.random(shape) - 1))
        kind = self.of("any", "any", "any", "any", "small", "constant", "zero", "whole")
        last = {"small": 2, "zero": 0, "constant": 0}.get(kind, int(32 * reach))
        values = self.generator.integers(-last, last + 1, shape, dtype=np.int16) / 32
        if kind == "constant":
            values += self.below(17) / 8 - 1
        return torch.from_numpy(values.round() if kind == "whole" else values)

    def tensor(self, slot: Slot, samples: int) -> torch.Tensor:
        shape = (samples, *slot.shape)
        if slot.kind == "map":  # about the identity, in sixteenths
            off = self.generator.integers(-6, 7, shape) / 16
            off[..., -1] *= self.of(1, 8, 32)
            off[..., :-1] += np.eye(slot.shape[0]) * self.of(1, 1, -1)
            return torch.from_numpy(off).to(slot.dtype)
        if slot.kind == "scale":
            return torch.from_numpy(self.generator.integers(1, 9, shape) / 8).to(slot.dtype)
        values = self.multiples(shape, slot.reach)
        if slot.kind == "weights":
            values = (values.abs() - 0.25).clamp(min=0)  # a third are 0
            if not slot.dtype.is_floating_point:
                values = values > 0.25
        return values.to(slot.dtype)


class Steeper(torch.autograd.Function):
    """The identity, whose gradient a function changes: a fault that tests must find."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None
