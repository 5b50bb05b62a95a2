"""What a step on a GPU draws from: pairs as they are, and random numbers that were sent before.

Images in memory are held on the device, others are sent for each step while another is computed;
what is random of several steps is drawn and sent at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import accumulate, chain, pairwise
from math import inf
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreg.data.pairs import PairDataset
from diffreg.data.samples import Batch
from diffreg.data.undrawn import Draws, Undrawn
from diffreg.training.own_pairs import OwnPairs
from diffreg.training.read_ahead import ReadAhead
from diffreg.training.uploads import Uploads

BLOCK = 25  # steps whose random numbers are sent at once
_HELD = 0.5  # of the device's free memory, by images
_ALIGNED = 16  # bytes: where a tensor of any type may begin

Share = Callable[[Sequence[int]], Sequence[int]]
_Steps = dict[int, Callable[[], Draws]]


def batches(
    dataset: Any, size: int, share: Share, device: torch.device
) -> Callable[[int], Undrawn | Batch]:
    """What a step, 0 being the first, has of a dataset, on the device.

    Args:
        dataset: a `PairDataset`, `ReadAhead` or `OwnPairs`.
        size: draws a step, of all processes together.
        share: which of a step's draws this process takes.
        device: of the steps.
    """
    numbers = partial(_numbers, size, share)
    if device.type == "cuda" and type(dataset) in (PairDataset, ReadAhead):
        return SentAhead(dataset, size, share, device).next
    if device.type == "cuda" and isinstance(dataset, OwnPairs):
        uploads = Uploads(device)
        return lambda step: uploads(dataset.read(numbers(step), pinned=True))
    return lambda step: dataset.batch(numbers(step), device)


class SentAhead:
    """The pairs of a dataset as the steps on a GPU draw them: the values that its `batch` gives.

    Args:
        dataset: a `PairDataset` or `ReadAhead`, by whose augmentation they are drawn.
        size: draws a step, of all processes together.
        share: which of a step's draws this process takes.
        device: of the steps.
    """

    def __init__(self, dataset: PairDataset, size: int, share: Share, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.numbers = partial(_numbers, size, share)
        # By the tensor on the host, as long as it lives: another one may have its id then.
        self._there: dict[int, tuple[ref[Tensor], Tensor]] = {}
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else inf
        self._room = _HELD * free if dataset.holds else 0.0
        self._uploads = Uploads(device) if on_gpu else list
        self._random: _Steps = {}
        self._thread = ThreadPoolExecutor(1, "draws")

    def next(self, step: int) -> Undrawn | Batch:
        """What a step, 0 being the first, is to draw from, on the device.

        Of images of several sizes: drawn, for each size would have a CUDA graph of its own.
        """
        numbers, dataset = self.numbers(step), self.dataset
        samples = dataset.samples(numbers, pinned=self.device.type == "cuda")
        if dataset.size is None:
            return dataset.drawn(samples, numbers, self.device)
        return dataset.undrawn(samples, self._drawn(step, dataset.size), self._on_device)

    def _drawn(self, step: int, shape: Sequence[int]) -> Draws:
        """Of a step; those of later ones are drawn, and sent, when no log is waited for."""
        if step not in self._random:
            self._random = self._block(step, shape)
        if (last := max(self._random)) < step + BLOCK:
            kept = {number: draws for number, draws in self._random.items() if number >= step}
            self._random = kept | self._block(last + 1, shape)
        self._random[step + BLOCK // 2]()
        return self._random[step]()

    def _on_device(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images of the host: held there, sent once, while there is room; else sent anew."""
        if self._hold(images):
            return [self._there[id(image)][1] for image in images]
        sent: list[Tensor] = self._uploads([self._ready(image) for image in images])
        return sent

    def _hold(self, images: Sequence[Tensor]) -> bool:
        """Whether all are on the device."""
        for image in images:
            if id(image) not in self._there:
                if image.nbytes > self._room:
                    return False
                self._room -= image.nbytes
                gone = partial(self._forget, id(image), image.nbytes)
                self._there[id(image)] = ref(image, gone), self._sent(image)
        return True

    def _forget(self, key: int, size: int, _: Any) -> None:
        """What is no longer held on the host is not held on the device."""
        self._there.pop(key, None)
        self._room += size

    def _block(self, first: int, shape: Sequence[int]) -> _Steps:
        """Of the steps from one on: sent in one piece when one is asked for."""
        draws = [self.numbers(step) for step in range(first, first + BLOCK)]
        drawing = self._thread.submit(self._draws, draws, shape)
        sent = cache(lambda: drawing.result().on_device(self._sent))
        ends = accumulate(map(len, draws), initial=0)
        return {
            step: partial(lambda pairs: sent().part(pairs), slice(*part))
            for step, part in enumerate(pairwise(ends), first)
        }

    def _draws(self, draws: Sequence[Sequence[int]], shape: Sequence[int]) -> _Packed:
        """On the host, ready to be sent; numpy draws them while another thread goes on."""
        dataset = self.dataset
        random = dataset.random(list(chain.from_iterable(draws)), shape)
        windows = dataset.windows and not dataset.holds
        return _Packed(dataset.draws(random, shape, windows), self._ready)

    def _ready(self, values: Tensor) -> Tensor:
        """In memory that is sent without a wait."""
        return values.contiguous().pin_memory() if self.device.type == "cuda" else values

    def _sent(self, values: Tensor) -> Tensor:
        """On the device; the host does not wait."""
        return self._ready(values).to(self.device, non_blocking=True)


class _Packed:
    """Draws as one row of bytes, in memory that is sent without a wait."""

    def __init__(self, draws: Draws, ready: Callable[[Tensor], Tensor]) -> None:
        self._draws = draws
        flat = [part.contiguous().flatten().view(torch.uint8) for part in draws if part is not None]
        self._bytes = ready(torch.cat([F.pad(part, (0, -len(part) % _ALIGNED)) for part in flat]))

    def on_device(self, send: Callable[[Tensor], Tensor]) -> Draws:
        """The draws, of which one tensor was sent."""
        sent, first = send(self._bytes), 0

        def part(like: Tensor) -> Tensor:
            nonlocal first
            start, first = first, first + like.nbytes + -like.nbytes % _ALIGNED
            return sent[start : start + like.nbytes].view(like.dtype).view(like.shape)

        return self._draws.each(part)


def _numbers(size: int, share: Share, step: int) -> Sequence[int]:
    """Of the draws that this process takes in a step."""
    return share(range(step * size, (step + 1) * size))
