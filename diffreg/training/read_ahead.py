"""Pairs of images that other processes read from the disk while a step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from diffreg.data.pairs import PairDataset, Sample
from diffreg.training.loading import Ahead, Sampler, Share, Steps, all_or_error, traced


class ReadAhead(PairDataset):
    """A PairDataset whose pairs are read ahead, step by step; its draws are the same bits.

    What is random is done where the steps are taken, on their device, as without workers.

    Args:
        given, options: of `PairDataset`, `cache` among them.
        size: draws a step, of all processes together.
        workers: processes that read.
        share: which of a step's draws this process takes; None: all.

    Example: `ReadAhead(pairs, cache="cache", size=8, workers=2).batch(range(8)).moving`
    """

    def __init__(
        self, *given: Any, size: int, workers: int, share: Share | None = None, **options: Any
    ) -> None:
        super().__init__(*given, **options)
        self.ahead = Ahead(size, share, workers, self._read)

    def samples(self, numbers: Sequence[int], pinned: bool = False) -> Sequence[Sample]:
        if not self.ahead.are_a_step(numbers):
            return super().samples(numbers)
        found: Sequence[Sample] = self.ahead.next(numbers, pinned)
        return found

    @property
    def holds(self) -> bool:
        return False  # the tensors of another process are new ones each time

    def close(self) -> None:
        """End the workers; the next batch begins anew."""
        self.ahead.close()

    def _read(self, steps: Steps) -> tuple[Any, dict[str, Any]]:
        sampler = Sampler(steps, lambda number: (self.position(number)[1], self.low(number)))
        return _Samples(self), {"batch_sampler": sampler, "collate_fn": all_or_error}


class _Samples(Dataset):
    """Samples by index and first voxel of a window, in whatever process."""

    def __init__(self, dataset: PairDataset) -> None:
        self.pairs, self.prepared = dataset.pairs, dataset.prepared
        self.crop = dataset.augmentation.crop

    def __getitem__(self, draw: tuple[int, Sequence[int] | None]) -> Sample | Exception:
        index, low = draw
        try:
            sample = self.prepared.sample(self.pairs[index])
            return sample if low is None else sample.window(low, self.crop).copied()
        except (ValueError, TypeError, OSError) as error:
            return traced(error)
