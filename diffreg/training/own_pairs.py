"""Pairs of a user's own torch Dataset, drawn through torch's DataLoader.

Draw k is a function of (seed, k), whatever was drawn before and by whom: torch, numpy and random
are seeded for each, so a run goes on to the same bits with any number of workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from diffreg.data.known import Known
from diffreg.data.order import permutation
from diffreg.data.pairs import Batch, Sample
from diffreg.training.loading import Ahead, Sampler, Share, Steps
from diffreg.training.protocol import NoSamples, batched, collated, lacking, nothing_known, tried
from diffreg.training.seeding import seeded

_DRAWN, _WHOLE = 2, 3  # what a seed is for, beside its number
_SOON = 100  # batches


class OwnPairs:
    """The pairs of a Dataset, drawn as `diffreg.data.pairs.PairDataset` draws its own.

    Args:
        dataset: gives dicts (`diffreg.training.protocol`): by index and with a length, then every
            epoch draws all of them in another order; or an IterableDataset, which is read again
            when it ends.
        seed: of the order and of every sample.
        size: draws a step, of all processes together.
        share: which of a step's draws this process takes; None: all.
        workers: processes that read; 0: this one.
        terms: which further parts are wanted: "labels", "landmarks", "displacement".

    Raises:
        TypeError, ValueError: it is no such dataset, it is empty, or its samples do not fit.

    Example: `OwnPairs(dataset, seed=0, size=8).batch(range(8)).moving`
    """

    def __init__(
        self,
        dataset: Any,
        seed: int,
        size: int,
        share: Share | None = None,
        workers: int = 0,
        terms: Collection[str] = (),
    ) -> None:
        self.dataset, self.seed, self.terms = dataset, seed, tuple(terms)
        self.streams = isinstance(dataset, IterableDataset)
        self.kind = f"{type(dataset).__module__}:{type(dataset).__qualname__}"
        if not self.streams:
            _check_indexed(dataset)
        elif workers > 1:
            raise ValueError(
                "data.workers must be 0 or 1 for an IterableDataset, whose order several would "
                f"change, got {workers}"
            )
        spacing = getattr(dataset, "spacing", None)
        self.spacing = None if spacing is None else tuple(float(length) for length in spacing)
        lengths = getattr(dataset, "spacing_mm", None)
        self.spacing_mm = () if lengths is None else _from_to(lengths)
        self.label_values = _label_values(dataset)
        self._awaited, self._seen = set(self.terms), 0
        self.ahead = Ahead(size, share, workers, self._read)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def names(self) -> list[str]:
        """What a checkpoint keeps of the data: a run does not go on with others."""
        return [self.kind if self.streams else f"{len(self)} samples of {self.kind}"]

    def are(self, names: Sequence[str]) -> bool:
        """Whether a checkpoint's names are these."""
        return list(names) == self.names

    def epoch(self, number: int) -> tuple[int, int]:
        """The epoch of a draw, and its place in it; those of a stream are not known."""
        return (0, number) if self.streams else divmod(number, len(self))

    def position(self, number: int) -> tuple[int, int]:
        """The epoch of a draw, and its sample; those of a stream are numbered through."""
        epoch, place = self.epoch(number)
        if self.streams:
            return epoch, place
        return epoch, int(permutation(self.seed, epoch, len(self))[place])

    def name(self, number: int) -> str:
        """What the sample of a draw is called."""
        return self.title(self.position(number)[1])

    def title(self, index: int) -> str:
        """What a sample is called."""
        return _title(self.kind, index)

    def batch(self, numbers: Iterable[int], device: torch.device | str = "cpu") -> Batch:
        """The draws of this process in a step; those of the steps that follow are made ready."""
        return self.read(list(numbers), torch.device(device).type == "cuda").to(device)

    def read(self, numbers: Sequence[int], pinned: bool) -> Batch:
        """As `batch`, on the host.

        Args:
            numbers: of the draws.
            pinned: in memory that a GPU copies from while the host goes on.
        """
        found: Batch = self.ahead.next(numbers, pinned)
        if min(numbers, default=0) >= self.ahead.size and not self._seen:
            self._awaited.clear()  # of a run that goes on the first batches were looked at
        if self._awaited:
            self._check_known(found, len(numbers))
        return found

    def _check_known(self, batch: Batch, size: int) -> None:
        """Some samples may have nothing that a term needs; a first epoch of them, or the first
        hundred batches, is refused."""
        self._seen += 1
        missing = {term: part for term in self._awaited if (part := lacking(batch.known, term))}
        self._awaited &= missing.keys()
        epoch = _SOON if self.streams else -(-len(self) // size)
        if missing and self._seen >= min(_SOON, epoch):
            raise nothing_known(*next(iter(missing.items())), self._seen)

    def whole(self, index: int) -> tuple[Sample, Known]:
        """A sample to validate on, always the same, and what `terms` ask for of it."""
        with seeded(self.seed, index, _WHOLE):
            sample = tried(lambda: self.dataset[index], self.title(index))
        if isinstance(sample, Exception):
            raise sample
        return sample, batched([sample], self.terms, self.label_values).known

    def close(self) -> None:
        """End the workers; the next batch begins anew."""
        self.ahead.close()

    def _read(self, steps: Steps) -> tuple[Any, dict[str, Any]]:
        """What the DataLoader reads, given the draws of each step."""
        if self.streams:
            return _Stream(self, steps), {"batch_size": None}
        sampler = Sampler(steps, lambda number: (number, self.position(number)[1]))
        collate = partial(collated, terms=self.terms, values=self.label_values)
        return _Draws(self), {"batch_sampler": sampler, "collate_fn": collate}


def _title(kind: str, index: int) -> str:
    return f"sample {index} of {kind.rpartition(':')[2]}"


def _no_samples(dataset: Any) -> NoSamples:
    return NoSamples(f"dataset must have samples; {type(dataset).__name__} has none")


def _check_indexed(dataset: Any) -> None:
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(
            "dataset must be a torch Dataset with a length, an IterableDataset or a "
            f"diffreg.data.pairs.PairDataset, got {type(dataset).__name__}"
        )
    if len(dataset) == 0:
        raise _no_samples(dataset)


def _label_values(dataset: Any) -> list[float] | None:
    """The labels of all its maps, if it says which: then each batch has a channel for each."""
    given = getattr(dataset, "label_values", None)
    if given is None:
        return None
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if (
        values.ndim != 1
        or values.size == 0
        or not (np.isfinite(values) & (values == np.round(values))).all()
    ):
        raise ValueError(
            f"a dataset's label_values must be the whole numbers of its labels, got {given!r:.80}"
        )
    found: list[float] = np.unique(values[values != 0]).tolist()
    return found


def _from_to(lengths: Any) -> tuple[tuple[float, ...], ...]:
    """Lengths of voxels, mm, along each axis: those of all, or the shortest and the longest."""
    try:
        rows = np.atleast_2d(np.asarray(lengths, dtype=np.float64))
    except (TypeError, ValueError):
        rows = np.zeros((0, 0))
    right = rows.ndim == 2 and rows.size and rows.shape[1] in (2, 3)
    if not right or not (np.isfinite(rows) & (rows > 0)).all():
        raise ValueError(
            "a dataset's spacing_mm must be the lengths of a voxel along its 2 or 3 axes, mm, or "
            f"those of several, (K, 2 or 3), got {lengths!r:.80}"
        )
    return tuple(rows.min(0).tolist()), tuple(rows.max(0).tolist())


class _Draws(Dataset):
    """Samples by (number of the draw, index), in whatever process."""

    def __init__(self, pairs: OwnPairs) -> None:
        self.dataset, self.seed = pairs.dataset, pairs.seed
        self.title = partial(_title, pairs.kind)

    def __getitem__(self, draw: tuple[int, int]) -> Sample | Exception:
        number, index = draw
        with seeded(self.seed, number, _DRAWN):
            return tried(lambda: self.dataset[index], self.title(index))


class _Stream(IterableDataset):
    """The batches of an IterableDataset; what comes before the first step is read and dropped."""

    def __init__(self, pairs: OwnPairs, steps: Steps) -> None:
        self.dataset, self.seed = pairs.dataset, pairs.seed
        self.collated = partial(collated, terms=pairs.terms, values=pairs.label_values)
        self.title, self.steps = partial(_title, pairs.kind), steps

    def __iter__(self) -> Iterator[Any]:
        draws = self._draws()
        for numbers in self.steps():
            wanted: list[Sample | Exception] = []
            while len(wanted) < len(numbers):
                number, sample = next(draws)
                # A source that failed has ended, whoever's sample it was.
                if number in numbers or isinstance(sample, Exception):
                    wanted.append(sample)
            yield self.collated(wanted)

    def _draws(self) -> Iterator[tuple[int, Sample | Exception]]:
        """All samples with their numbers, over and over."""
        source: Iterator[Any] = iter(())

        def following() -> Any:
            nonlocal source
            for item in source:
                return item
            source = iter(self.dataset)
            for item in source:
                return item
            raise _no_samples(self.dataset)

        for number in count():
            with seeded(self.seed, number, _DRAWN):
                sample = tried(following, self.title(number))
            yield number, sample
