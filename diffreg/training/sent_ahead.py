"""Pairs held on a GPU, and the random numbers of several steps sent to it at once.

What a step needs of the host is then a list of images and a part of what is already there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import accumulate, chain, pairwise
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from diffreg.data.drawing import Draws, Undrawn
from diffreg.data.pairs import PairDataset
from diffreg.data.samples import Batch

BLOCK = 25  # steps whose random numbers are sent at once
_HELD = 0.5  # of the device's free memory, by images

Share = Callable[[Sequence[int]], Sequence[int]]
_Steps = dict[int, Callable[[], Draws]]


def batches(
    dataset: Any, size: int, share: Share, device: torch.device
) -> Callable[[int], Undrawn | Batch]:
    """What a step, 0 being the first, has of a dataset, on the device.

    Args:
        dataset: a `PairDataset` or `diffreg.training.own_pairs.OwnPairs`.
        size: draws a step, of all processes together.
        share: which of a step's draws this process takes.
        device: of the steps.
    """
    held = type(dataset) is PairDataset and not dataset.terms and dataset.holds
    if device.type == "cuda" and held:
        return SentAhead(dataset, size, share, device).next
    return lambda step: dataset.batch(share(range(step * size, (step + 1) * size)), device)


class SentAhead:
    """The pairs of a dataset as the steps on a GPU draw them: the values that its `batch` gives.

    Args:
        dataset: of pairs.
        size: draws a step, of all processes together.
        share: which of a step's draws this process takes.
        device: of the steps.
    """

    def __init__(self, dataset: PairDataset, size: int, share: Share, device: torch.device) -> None:
        self.dataset, self.size, self.share, self.device = dataset, size, share, device
        # By the tensor on the host, as long as it lives: another one may have its id then.
        self._there: dict[int, tuple[ref[Tensor], Tensor]] = {}
        self._room = _HELD * _free(device)
        self._random: dict[Sequence[int], _Steps] = {}  # by shape
        self._thread = ThreadPoolExecutor(1, "draws")

    def next(self, step: int) -> Undrawn | Batch:
        """What a step, 0 being the first, is to draw from, on the device.

        Where its images have several sizes or masks, or there is no room: drawn already.
        """
        numbers = self._numbers(step)
        samples = [self.dataset.sample(self.dataset.position(number)[1]) for number in numbers]
        shape = samples[0].fixed.shape[2:]
        simple = all(s.mask is None and s.fixed.shape[2:] == shape for s in samples)
        if not simple or not self._hold(chain.from_iterable(s[:2] for s in samples)):
            return self.dataset.batch(numbers, self.device)
        both = [self._there[id(image)][1] for sample in samples for image in sample[:2]]
        images = torch.cat(both)[:, 0].unflatten(0, (-1, 2))
        return Undrawn(images, self._drawn(step, shape), self.dataset.augmentation)

    def _drawn(self, step: int, shape: Sequence[int]) -> Draws:
        """Of a step; those of later ones are drawn, and sent, when no log is waited for."""
        found = self._random.get(shape, {})
        if step not in found:
            found = self._block(step, shape)
        if (last := max(found)) < step + BLOCK:
            kept = {number: random for number, random in found.items() if number >= step}
            found = kept | self._block(last + 1, shape)
        self._random[shape] = found
        found[step + BLOCK // 2]()
        return found[step]()

    def _numbers(self, step: int) -> Sequence[int]:
        return self.share(range(step * self.size, (step + 1) * self.size))

    def _hold(self, images: Iterator[Tensor]) -> bool:
        """Whether all are on the device, where each is sent once while there is room."""
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
        """Of the steps from one on: sent in one piece for each kind when one is asked for."""
        draws = [self._numbers(step) for step in range(first, first + BLOCK)]
        drawing = self._thread.submit(self._draws, draws, shape)
        sent = cache(lambda: Draws._make(map(self._sent, drawing.result())))
        ends = accumulate(map(len, draws), initial=0)
        return {
            step: partial(lambda pairs: sent().part(pairs), slice(*part))
            for step, part in enumerate(pairwise(ends), first)
        }

    def _draws(self, draws: Sequence[Sequence[int]], shape: Sequence[int]) -> Draws:
        """On the host, ready to be sent; numpy draws them while another thread goes on."""
        places = map(self.dataset.position, chain.from_iterable(draws))
        randoms = [np.random.default_rng([self.dataset.seed, *place]) for place in places]
        augmentation = self.dataset.augmentation
        drawn = Draws.of(augmentation.random(shape, randoms), augmentation, shape)
        return Draws._make(map(self._ready, drawn))

    def _ready(self, values: Tensor) -> Tensor:
        """In memory that is sent without a wait."""
        return values.contiguous().pin_memory() if self.device.type == "cuda" else values

    def _sent(self, values: Tensor) -> Tensor:
        """On the device; the host does not wait."""
        return self._ready(values).to(self.device, non_blocking=True)


def _free(device: torch.device) -> float:
    """Bytes."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")
