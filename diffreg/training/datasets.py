"""The pairs of a run: those of its settings, or those that were given, of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffreg.affine.start import AffineStarts
from diffreg.data.augmentation import Augmentation
from diffreg.data.pairs import PairDataset, find_pairs, split_by_group
from diffreg.training.config import Config
from diffreg.training.own import made
from diffreg.training.own_pairs import OwnPairs
from diffreg.training.ranks import Ranks
from diffreg.training.read_ahead import ReadAhead
from diffreg.training.terms import objective_of, terms_of

Pairs = PairDataset | OwnPairs
STARTS = ".diffreg"  # the folder beside the data that keeps affine starts


def datasets(
    config: Config, dataset: Any, validation: Any, ranks: Ranks, progress: bool = False
) -> tuple[Pairs, Pairs | None]:
    """The pairs to train on, and those to validate on, which are never augmented.

    Args:
        config: of the run.
        dataset: what to train on in place of `config.data`, a PairDataset or a torch Dataset.
        validation: what to validate on then.
        ranks: the processes of the run.
        progress: whether to draw a bar while pairs of images are made ready.

    Raises:
        TypeError, ValueError, OSError, ImportError: data that is not there or does not fit.
    """
    if dataset is not None:
        return _adapted(config, dataset, ranks), _held_out(config, validation, ranks)
    if validation is not None:
        raise ValueError("validation goes with dataset; that of the settings is data.validation")
    data = config.data
    if not data.name:
        return _of_images(config, ranks, progress)
    dataset = made(data.name, "data.name", data.settings)
    if data.validation_settings:
        validation = made(data.name, "data.name", data.validation_settings)
    return _adapted(config, dataset, ranks), _held_out(config, validation, ranks)


def _adapted(config: Config, dataset: Any, ranks: Ranks) -> Pairs:
    """A dataset as the trainer draws from it."""
    terms = terms_of(config.objective)
    if isinstance(dataset, PairDataset):
        missing = [term for term in terms if term not in dataset.terms]
        if missing:
            raise ValueError(f"objective.{missing[0]} needs PairDataset(..., terms={terms!r})")
        return dataset
    if config.augmentation != Augmentation():
        raise ValueError(
            "[augmentation] is for the pairs of images in the settings; a dataset of your own "
            "augments in its __getitem__"
        )
    settings = config.training
    share = ranks.share if ranks.count > 1 else None
    return OwnPairs(dataset, settings.seed, settings.batch_size, share, config.data.workers, terms)


def _held_out(config: Config, validation: Any, ranks: Ranks) -> Pairs | None:
    if validation is None:
        return None
    found = _adapted(config, validation, ranks)
    if isinstance(found, OwnPairs) and found.streams:
        raise ValueError("validation must be a dataset with a length, got an IterableDataset")
    return found


def _of_images(
    config: Config, ranks: Ranks, progress: bool
) -> tuple[PairDataset, PairDataset | None]:
    """Those of files, which are held in memory, or in a folder."""
    data, seed, terms = config.data, config.training.seed, terms_of(config.objective)
    taken = data.slices, config.model.dimensions
    if data.workers and not data.cache:
        raise ValueError(
            "data.workers read images from a folder: give data.cache, where they are kept; without "
            "it they are read once, and held"
        )
    pairs, held_out = split_by_group(
        find_pairs(data.images, *taken), data.validation_groups, data.validation_share, seed
    )
    if data.validation:
        held_out = find_pairs(data.validation, *taken)
    how: dict[str, Any] = {"terms": terms, "cache": data.cache or None, "progress": progress}
    if data.affine != "none":
        similarity = "+".join(objective_of(config.objective).similarity)
        how["start"] = AffineStarts(data.affine, similarity)
        first = Path(data.images[0])
        how["starts"] = (first if first.is_dir() else first.parent) / STARTS
    given = pairs, config.normalization, config.augmentation, seed
    if data.workers:
        share = ranks.share if ranks.count > 1 else None
        size = config.training.batch_size
        training: PairDataset = ReadAhead(
            *given, size=size, workers=data.workers, share=share, **how
        )
    else:
        training = PairDataset(*given, **how)
    if not held_out:
        return training, None
    validation = PairDataset(held_out, config.normalization, batches=False, **how)
    if validation.spacing != training.spacing:
        raise ValueError(
            f"the voxels of the pairs to validate on have proportions {validation.spacing}, those "
            f"to train on {training.spacing}: they must be of one shape"
        )
    return training, validation
