"""Pairs of images to train on: found in folders or a manifest, made ready once, drawn without end.

Draw number k of a run is the pair at place k mod P of a shuffled order of all P pairs, another
order each epoch k // P. What is drawn is a pure function of (seed, k): nothing else has to be kept
to go on where a run stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffreg import __version__
from diffreg.data.augmentation import Augmentation, RandomNumbers
from diffreg.data.drawing import drawn
from diffreg.data.finding import find_pairs, split_by_group
from diffreg.data.known import Known, check_terms, label_values, one_hot
from diffreg.data.normalization import Normalization
from diffreg.data.order import shuffled
from diffreg.data.pairing import Pair, Pairs
from diffreg.data.prepared_pairs import PreparedPairs, Start, sides_of
from diffreg.data.samples import Batch, Sample
from diffreg.data.store import Aside, Held, Kept
from diffreg.data.undrawn import Draws, Send, Undrawn, Wanted
from diffreg.system.extras import require
from diffreg.system.memory import memory_limit, returned_memory
from diffreg.system.ranks import this_rank

__all__ = ["Batch", "PairDataset", "Sample", "find_pairs", "split_by_group"]

# The size of what is drawn and the voxels' proportions, with the first image that has them.
Grids = dict[tuple[tuple[int, ...], tuple[float, ...]], Path]
_HELD = 0.5  # of the machine's memory, by images that were made ready
# Bytes of blocks that go back at once while pairs are made ready into a folder: those of images of
# any size. Between the files that are held meanwhile holes remained, more with every pair.
_RETURNED = 2**18


class PairDataset:
    """Pairs of images, read and normalised once, drawn shuffled and augmented.

    At first every pair that is listed is made ready, and of every ordered pair of n images n; the
    others when they are drawn.

    Args:
        pairs: which pairs.
        normalization: of each image, or slice, by itself.
        augmentation: what is done to a pair each time it is drawn; None: nothing.
        seed: of the order and of the augmentation.
        batches: whether pairs are to be put together, which needs images of one size.
        terms: what else is known of pairs and drawn with them: "labels", "landmarks",
            "displacement" (`diffreg.data.known`).
        cache: a folder that keeps what was made ready, and that pairs are read from when they are
            drawn; None: they are held in memory, the last ones where not all of them fit.
        start: finds the affine map that a moving image is placed by first; None: by its header.
        starts: a folder that keeps these maps for other datasets where there is no `cache`, as far
            as it can be written to; None: they are found anew by each.
        progress: whether to draw a bar on stderr while pairs are made ready.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are no pairs, or images that do not fit together.

    Example: `PairDataset(find_pairs(["images"])).batch(range(8)).moving`
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        normalization: Normalization | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        batches: bool = True,
        terms: Collection[str] = (),
        cache: str | Path | None = None,
        start: Start | None = None,
        starts: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        if not pairs:
            raise ValueError("there are no pairs to train on")
        self.pairs = Pairs.of(pairs)
        self.normalization = normalization or Normalization()
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self.terms = tuple(terms)
        cover = list(self.pairs.cover())
        check_terms(cover, self.terms)
        store = Kept(cache, __version__) if cache else Held(_HELD * memory_limit())
        maps = Aside(starts, __version__) if start and starts and not cache else None
        self.prepared = PreparedPairs(self.normalization, store, self.terms, start, maps)
        self._sizes: set[tuple[int, ...]] = set()  # of the fixed images
        self.wanted, self.spacing = self._made_ready(cover, batches, progress)
        self.spacing_mm = self._lengths(cover)

    def __len__(self) -> int:
        return len(self.pairs)

    def position(self, number: int) -> tuple[int, int]:
        """The epoch of a draw, and which pair it is."""
        epoch, place = divmod(number, len(self))
        return epoch, shuffled(self.seed, epoch, place, len(self))

    def epoch(self, number: int) -> tuple[int, int]:
        """The epoch of a draw, and its place in it."""
        return divmod(number, len(self))

    def name(self, number: int) -> str:
        """What the pair of a draw is called."""
        return self.pairs[self.position(number)[1]].name

    @property
    def names(self) -> list[str]:
        """What a checkpoint keeps of the pairs: a name for each, or for each of their images."""
        return self.pairs.names

    def are(self, names: Sequence[str]) -> bool:
        """Whether a checkpoint's names are these; the first ones named every pair."""
        if list(names) == self.names:
            return True
        each = zip(names, self.pairs, strict=True)
        return len(names) == len(self) and all(name == pair.name for name, pair in each)

    @property
    def holds(self) -> bool:
        """Whether images are held in memory, and a pair is the same tensors as long as they fit."""
        return isinstance(self.prepared.store, Held)

    @property
    def size(self) -> tuple[int, ...] | None:
        """The size (*S) of all fixed images; None where they have several."""
        return next(iter(self._sizes)) if len(self._sizes) == 1 else None

    def sample(self, index: int) -> Sample:
        """A pair as it is."""
        return self.prepared.sample(self.pairs[index])

    def title(self, index: int) -> str:
        """What a pair is called."""
        return self.pairs[index].name

    def whole(self, index: int) -> tuple[Sample, Known]:
        """A pair as it is, to validate on, and what `terms` ask for of it."""
        sample = self.sample(index)
        return sample, self._known(sample)

    def _known(self, sample: Sample) -> Known:
        """What `terms` ask for of a pair as it is, its labels as channels."""
        values = self.wanted.values
        if values is None:
            return sample.known
        channels = [None if m is None else one_hot(m, values) for m in sample.both_labels]
        return Known._make([*channels, *sample.known[2:]])

    def batch(self, numbers: Iterable[int], device: torch.device | str = "cpu") -> Batch:
        """Several draws together, augmented on the device that they are wanted on."""
        numbers = list(numbers)
        return self.drawn(self.samples(numbers), numbers, device)

    def close(self) -> None:
        """End the processes that read ahead; here there are none."""

    def samples(self, numbers: Sequence[int], pinned: bool = False) -> Sequence[Sample]:
        """The pairs of some draws as they are; read from a folder, what `cut` leaves of them.

        Args:
            numbers: of the draws.
            pinned: whether pairs that are read for them are to lie in pinned memory.
        """
        samples = [self.sample(self.position(number)[1]) for number in numbers]
        if self.holds:
            return samples
        both = zip(samples, map(self.low, numbers), strict=True)
        return [self.cut(sample, low) for sample, low in both]

    @property
    def windows(self) -> bool:
        """Whether a draw shows a window of its pair, and nothing else of it matters."""
        return bool(self.augmentation.crop) and not self.augmentation.amplitude

    def low(self, number: int) -> Sequence[int] | None:
        """The first voxel of the window that a draw shows; None: all of its pair is drawn from."""
        if not self.windows:
            return None
        pair = self.pairs[self.position(number)[1]]
        size = self.prepared.place(pair.fixed, sides_of(pair)[1]).grid.size
        return self._lows(self.random([number], size), size)[0]

    def cut(self, sample: Sample, low: Sequence[int] | None) -> Sample:
        """The window of a pair from a voxel on, where a draw shows no more."""
        return sample if low is None else sample.window(low, self.augmentation.crop)

    def drawn(
        self, samples: Sequence[Sample], numbers: Sequence[int], device: torch.device | str
    ) -> Batch:
        """The pairs of some draws, augmented on a device."""

        def sent(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        shapes = {sample.size for sample in samples}
        if len(shapes) > 1:
            pairs = zip(samples, numbers, strict=True)
            return Batch.of([self.drawn([sample], [number], device) for sample, number in pairs])
        (shape,) = shapes
        random = self.random(numbers, shape)
        if self.windows:
            samples = list(map(self.cut, samples, self._lows(random, shape)))
        draws = self.draws(random, shape, self.windows).each(sent)
        return drawn(self.undrawn(samples, draws, lambda tensors: [sent(t) for t in tensors]))

    def random(self, numbers: Sequence[int], shape: Sequence[int]) -> RandomNumbers:
        """What is random of some draws from images of one size (*S), on the host."""
        randoms = [np.random.default_rng([self.seed, *self.position(k)]) for k in numbers]
        return self.augmentation.random(shape, randoms)

    def draws(self, random: RandomNumbers, shape: Sequence[int], windows: bool = False) -> Draws:
        """The same as a device looks it up, from whole images or from `windows` of them."""
        known = "landmarks" in self.terms or "displacement" in self.terms
        return Draws.of(random, self.augmentation, shape, known, windows)

    def _lows(self, random: RandomNumbers, shape: Sequence[int]) -> list[list[int]]:
        found: list[list[int]] = random.lows(shape, self.augmentation.crop).tolist()
        return found

    def undrawn(self, samples: Sequence[Sample], draws: Draws, send: Send) -> Undrawn:
        """Pairs of one size, or windows of them, on the device of their draws.

        Args:
            samples: the pairs.
            draws: of them, on the device.
            send: brings tensors there.
        """
        return Undrawn.of(samples, draws, self.augmentation, self.wanted, send)

    def _made_ready(
        self, pairs: Sequence[Pair], batches: bool, progress: bool
    ) -> tuple[Wanted, tuple[float, ...]]:
        """Pairs are seen to fit together, each before it is made ready.

        Returns:
            What is known of them, where the objective asks, and the proportions of the voxels.
        """
        found: set[float] = set()
        most = 0
        grids: Grids = {}
        if not self.holds or self.prepared.start:  # what another rank has kept by then is found
            rank = this_rank()
            first = len(pairs) * rank.number // rank.count
            pairs = [*pairs[first:], *pairs[:first]]
        if progress:
            pairs = require("tqdm", "progress bars").tqdm(pairs, "prepare", leave=False, delay=1)
        # Blocks of many sizes come and go: kept, they would break up gigabytes of memory.
        with nullcontext() if self.holds else returned_memory(_RETURNED):
            for pair in pairs:
                self._check_grid(pair, batches, grids)
                sample = self.prepared.sample(pair)
                if "labels" in self.terms:
                    found.update(label_values([sample.moving_label, sample.fixed_label]))
                points = sample.known.fixed_points
                most = max(most, 0 if points is None else points.shape[1])
        self.prepared.forget_files()
        values = torch.tensor(sorted(found), dtype=torch.float64) if found else None
        return Wanted(values, most, "displacement" in self.terms), next(iter(grids))[1]

    def _check_grid(self, pair: Pair, batches: bool, grids: Grids) -> None:
        """Refuses a fixed image unless its voxels have the shape of those before, as do batches."""
        fixed = self.prepared.place(pair.fixed, sides_of(pair)[1]).grid
        finest = min(fixed.spacing)
        proportions = tuple(round(length / finest, 3) for length in fixed.spacing)
        try:
            shape = self.augmentation.shape(fixed.size) if batches else ()
        except ValueError as error:
            raise ValueError(f"{pair.fixed}: {error}") from None
        self._sizes.add(tuple(fixed.size))
        grids.setdefault((shape, proportions), pair.fixed)
        if len(grids) > 1:
            (one, first), (other, second) = list(grids.items())
            raise ValueError(
                f"the fixed images must have one size (or a crop) and voxels of one shape: {first} "
                f"has {one[0]} and {one[1]}, {second} has {other[0]} and {other[1]}"
            )

    def _lengths(self, pairs: Sequence[Pair]) -> tuple[tuple[float, ...], ...]:
        """The fixed images' shortest and longest voxels, mm; nothing where no file has lengths."""
        places = [self.prepared.place(pair.fixed, sides_of(pair)[1]) for pair in pairs]
        found = sorted(place.grid.spacing for place in places if place.kind == "nifti")
        return (found[0], found[-1]) if found else ()
