"""Counts what a training step calls, on the CPU, and predicts what it takes in a CUDA graph.

    python bench/gpu/step_counts.py

Writes bench/results/step_counts.json, of which page.py makes a table. Every operator call of one
step is seen by a dispatch mode: its tensors' bytes, and a convolution's operations, which is not
computed. A call is one kernel of a graph; of ours there are as many as cuda_cost.py counted, of
convolutions those of `_convolutions`. A kernel takes the time of its bytes at the card's rate, and
at least a fixed one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from tables import Row
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffreg.benchmark.cases import Draw
from diffreg.benchmark.network import NetworkStep, Setting, Step, TrainerSteps, drawn_pairs
from diffreg.data import drawing
from diffreg.models import lunet, memory_order
from diffreg.models._pooling import _Halved, halved
from diffreg.training import graphs
from diffreg.training.log_ring import TERMS
from diffreg.training.sent_ahead import SentAhead

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
WRITTEN, COUNTS = RESULTS / "step_counts.json", RESULTS / "cuda_counts.json"
# Milliseconds of network, objective and Adam alone in a graph on an H200 (torch 2.11, commit
# a7e3939): what the constants of `Card` were fitted to.
GRAPHS = {
    ("lunet", (8, 1, 128, 128), "float32"): 1.7,
    ("lunet", (8, 1, 128, 128), "bfloat16"): 2.1,
    ("lunet", (8, 1, 256, 256), "float32"): 3.8,
    ("lunet", (8, 1, 256, 256), "bfloat16"): 3.2,
    ("lunet", (32, 1, 256, 256), "float32"): 13.0,
    ("lunet", (32, 1, 256, 256), "bfloat16"): 9.8,
    ("sn", (8, 1, 128, 128), "float32"): 2.4,
    ("sn", (8, 1, 128, 128), "bfloat16"): 0.9,
}
VOLUMES = ("lunet", (1, 1, 128, 128, 128), "bfloat16")
NODES = (2.0, 3.0, 4.0)  # microseconds; the smallest kernel measured in a graph took 3.7
_CONVOLUTION, _GRADIENT = "aten::convolution", "aten::convolution_backward"
_NO_KERNEL = {f"aten::{name}" for name in ("empty", "empty_like", "new_empty", "empty_strided")}
_WRITES_ONLY = ("aten::copy_", "aten::fill_", "aten::zero_")


class Kernel(NamedTuple):
    """A kernel of a graph: what it moves, bytes, and multiplies and adds, if a convolution."""

    name: str
    moved: float
    operations: float = 0.0
    half: bool = False


class Card(NamedTuple):
    """What an H200 does a second; of convolutions of so few channels, fitted to GRAPHS."""

    bytes: float = 4.2e12
    convolution_bytes: float = 0.3e12
    operations: float = 16e12
    half_operations: float = 45e12
    convolution: float = 25e-6  # seconds that one takes at least

    def seconds(self, kernel: Kernel, node: float) -> float:
        if not kernel.operations:
            return max(node, kernel.moved / self.bytes)
        rate = self.half_operations if kernel.half else self.operations
        times = kernel.moved / self.convolution_bytes, kernel.operations / rate
        return max(*times, self.convolution)


class Kernels(TorchDispatchMode):
    """Notes the kernels of what is called; a convolution gives zeros."""

    def __init__(self, counts: list[Row]) -> None:
        super().__init__()
        self.found: list[Kernel] = []
        self.counts = {(c["operator"], c.get("dimensions", 2)): c for c in counts}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name
        if name in (_CONVOLUTION, _GRADIENT):
            value = _zeros(name, *args)
            self.found += _convolutions(name, args, value)
            return value
        value = function(*args, **(kwargs or {}))
        self.found += self._kernels(function, args, kwargs, value)
        return value

    def _kernels(self, function: Any, args: Any, kwargs: Any, value: Any) -> Iterator[Kernel]:
        name, written = function._schema.name, function._schema.is_mutable
        given, made = _tensors((args, kwargs)), _tensors(value)
        there = {tensor.untyped_storage().data_ptr() for tensor in given}
        views = all(tensor.untyped_storage().data_ptr() in there for tensor in made)
        if name in _NO_KERNEL or (views and not written):
            return
        moved = sum({(t.data_ptr(), t.shape): _bytes(t) for t in (*given, *made)}.values())
        if written and name not in _WRITES_ONLY:  # what is changed is read too
            moved += sum(
                _bytes(tensor)
                for argument, part in zip(function._schema.arguments, args, strict=False)
                if argument.alias_info and argument.alias_info.is_write
                for tensor in _tensors(part)
            )
        # The objective of the trials is "ncc".
        operator = function._opname.replace("objective", "objective, ncc")
        dimensions = max((t.ndim for t in given), default=4) - 2
        ours = self.counts.get((operator, dimensions)) if name.startswith("diffreg") else None
        number = len(ours["kernels"]) if ours else 1
        over = ours["bytes_a_voxel"] / ours["fewest_bytes_a_voxel"] if ours else 1.0
        yield from [Kernel(name, over * moved / number)] * number


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Of what is read or written: an expanded tensor has less than it seems."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def _zeros(name: str, *args: Any) -> Any:
    """In the place of a convolution, or of its gradients."""
    if name == _GRADIENT:
        gradient, image, weight, *_, wanted = args
        like = image, weight, gradient.new_empty(weight.shape[0])
        return tuple(
            torch.zeros_like(one) if asked else None
            for one, asked in zip(like, wanted, strict=True)
        )
    image, weight, _, stride, padding = args[:5]
    sides = zip(image.shape[2:], weight.shape[2:], stride, padding, strict=True)
    size = [(n + 2 * pad - kernel) // step + 1 for n, kernel, step, pad in sides]
    found = image.new_zeros(len(image), len(weight), *size)
    order: Any = memory_order(image.ndim - 2)
    return found.contiguous(memory_format=order)


def _convolutions(name: str, args: Any, value: Any) -> Iterator[Kernel]:
    """A convolution and what adds its bias; of its gradients one kernel each."""
    image, weight, result = args[0], args[1], value
    if name == _GRADIENT:
        result, image, weight = args[:3]
    operations = 2.0 * result.numel() * weight[0].numel()
    moved = _bytes(image) + _bytes(weight) + _bytes(result)
    kernel = Kernel(name, moved, operations, image.dtype == torch.bfloat16)
    if name == _CONVOLUTION:
        yield kernel
        if args[2] is not None:
            yield Kernel("bias", 2 * _bytes(result))
        return
    yield from [kernel] * sum(args[-1][:2])
    if args[-1][2]:
        yield Kernel("gradient to the bias", _bytes(result))


def counted(step: Callable[[], Any]) -> list[Kernel]:
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else []
    with torch.autograd.set_multithreading_enabled(False), Kernels(counts) as kernels:
        step()
    return kernels.found


def alone(
    model: str, shape: Sequence[int], precision: str, kind: type[Step] = Step
) -> list[Kernel]:
    """Network, objective and Adam; of a `NetworkStep` the network's two passes."""
    samples, channels, *size = shape
    setting = Setting(channels_last=True, bfloat16=precision == "bfloat16")
    step = kind(model, setting, Draw((1, channels, *(16 for _ in size))))
    step()  # Adam makes its state
    draw = Draw((samples, channels, *size))
    step.moving, step.fixed = draw.image(1), draw.image(2)
    step.field = torch.zeros(samples, len(size), *size)  # the gradient that a network alone gets
    return counted(step)


def trainer(model: str, shape: Sequence[int], precision: str) -> list[Kernel]:
    """A step as it is replayed on a GPU, with what is copied to the graph before."""
    samples, _, *size = shape
    row = torch.zeros(TERMS + 4)
    rerun = mock.patch.object(graphs, "captured", lambda function, pool: (function, row))
    gathered = mock.patch.object(drawing, "_sliced", drawing._gathered)  # as a GPU takes voxels
    with drawn_pairs(size[0], len(size)) as dataset, rerun, gathered:
        steps = TrainerSteps(model, dataset, samples, "cpu", precision=precision).trainer._steps
        steps.step._checked = True
        steps.batch = SentAhead(dataset, samples, lambda draws: draws, torch.device("cpu")).next
        steps.run = graphs._Graph(steps.step, steps.batch(0), None)
        counted(lambda: steps.take(0, steps.drawn(0)))  # Adam makes its state
        steps.log.taken.clear()
        return counted(lambda: steps.take(1, steps.drawn(1)))


def halved_on_a_gpu(image: Tensor) -> Tensor:
    """As `diffreg.models._pooling.halved` there."""
    found: Tensor = _Halved.apply(image)[0] if image.ndim == 5 else halved(image)
    return found


def summed(kernels: Sequence[Kernel]) -> Row:
    """Their number and time, by each time that a node takes at least."""
    card = Card()
    return {
        "kernels": len(kernels),
        "gigabytes": round(sum(kernel.moved for kernel in kernels) / 1e9, 3),
        "convolutions' gigaflops": round(sum(kernel.operations for kernel in kernels) / 1e9, 1),
        "milliseconds": {
            f"{node:.0f} us a node": round(
                1e3 * sum(card.seconds(kernel, 1e-6 * node) for kernel in kernels), 3
            )
            for node in NODES
        },
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    rows = []
    with mock.patch.object(lunet, "halved", halved_on_a_gpu):
        for model, shape, precision in (*GRAPHS, VOLUMES):
            given = model, shape, precision
            row = {"model": model, "shape": shape, "precision": precision}
            row |= {"measured": GRAPHS.get(given), "alone": summed(alone(*given))}
            row |= {"network": summed(alone(*given, NetworkStep))}
            rows.append(row | {"trainer": summed(trainer(*given))})
            print(rows[-1], flush=True)
    WRITTEN.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
