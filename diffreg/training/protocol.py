"""What a user's own Dataset gives: dicts, checked in words, and put together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffreg.data.known import TERMS, Known, label_values, one_hot, together
from diffreg.data.pairs import Batch, Sample
from diffreg.system.files import FileWarning
from diffreg.system.own_code import place_of
from diffreg.training.loading import all_or_error, traced

# Key -> what it has to be, D = 2 or 3; the first two must be there.
PROTOCOL = {
    "moving": "(C, *S), floating, about [0, 1], on the grid of fixed",
    "fixed": "(C, *S), floating, about [0, 1]",
    "moving_mask": "(1, *S), >= 0",
    "fixed_mask": "(1, *S), >= 0",
    "moving_label": "(1, *S), whole numbers, or (L, *S), floating, in [0, 1]",
    "fixed_label": "(1, *S), whole numbers, or (L, *S), floating, in [0, 1]",
    "moving_points": "(K, D), voxels of the grid of fixed",
    "fixed_points": "(K, D), voxels",
    "displacement": "(D, *S), voxels, NaN where it is not known",
}
# What callers tell apart, and what is of the machine and not of the dataset.
_KEPT = (torch.OutOfMemoryError, MemoryError, FileNotFoundError, PermissionError, OSError)
_FAR = 50  # of an image's values: nothing that is centred and scaled is beyond, a CT is


class NoSamples(ValueError):
    """A dataset is empty."""


def tried(get: Callable[[], Any], name: str) -> Sample | Exception:
    """A sample, or what is wrong with it: a worker's exceptions would come with its whole trace.

    Args:
        get: the dataset's own code, which may raise anything.
        name: of the sample.

    Returns:
        The sample; or an error of one line, its cause what was raised: an OSError, MemoryError or
        torch.OutOfMemoryError as it was, else a ValueError or TypeError.
    """
    try:
        item = get()
    except NoSamples as error:
        return error
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        kind = next((kind for kind in _KEPT if isinstance(error, kind)), ValueError)
        wrong = kind(f"{name}: {what}{place_of(error, installed=True)}")
        wrong.__cause__ = error
        return traced(wrong)
    try:
        return checked_sample(item, name)
    except (TypeError, ValueError) as error:
        return error


def collated(
    samples: Sequence[Sample | Exception],
    terms: Collection[str],
    values: Sequence[float] | None = None,
) -> Batch | Exception:
    """Samples as one batch, or what is wrong with them."""
    found = all_or_error(samples)
    try:
        return found if isinstance(found, Exception) else batched(found, terms, values)
    except (TypeError, ValueError) as error:
        return error


def batched(
    samples: Sequence[Sample], terms: Collection[str], values: Sequence[float] | None = None
) -> Batch:
    """Samples as one batch.

    Args:
        samples: of one size.
        terms: what is wanted of what is known of them.
        values: the labels that become channels; None: those that these samples have.
    """
    first = samples[0].fixed
    for sample in samples:
        if sample.fixed.shape != first.shape:
            raise ValueError(
                "the samples of a batch must have one size, got "
                f"{list(first.shape[1:])} and {list(sample.fixed.shape[1:])}"
            )
    moving = torch.cat([sample.moving for sample in samples])
    fixed = torch.cat([sample.fixed for sample in samples])
    mask = None
    if any(sample.mask is not None for sample in samples):
        one = torch.ones_like(first[:, :1])
        mask = torch.cat([one if sample.mask is None else sample.mask for sample in samples])
    maps = [label for s in samples for label in (s.moving_label, s.fixed_label)]
    given = values
    if values is None or "labels" not in terms:
        values = label_values(maps) if "labels" in terms else []
    known = together([_wanted(sample, values, terms) for sample in samples], fixed.shape[2:])
    if known.moving_label is None and given is not None and "labels" in terms:
        none = fixed.new_zeros(len(fixed), len(given), *fixed.shape[2:])
        known = known._replace(moving_label=none, fixed_label=none)
    return Batch(moving, fixed, mask, known)


def _wanted(sample: Sample, values: Sequence[float], terms: Collection[str]) -> Known:
    """What the terms ask for of a sample, its label maps as channels."""
    known = sample.known
    if sample.moving_label is not None and sample.fixed_label is not None:
        labels = sample.moving_label, sample.fixed_label
        known = Known(*(one_hot(label, values) for label in labels))._replace(
            moving_points=known.moving_points,
            fixed_points=known.fixed_points,
            displacement=known.displacement,
        )
    dropped = {part for term in TERMS if term not in terms for part in _parts(term)}
    return known._replace(**dict.fromkeys(dropped))


def _parts(term: str) -> tuple[str, ...]:
    return ("displacement",) if term == "displacement" else TERMS[term]


def lacking(known: Known, term: str) -> str:
    """What a batch has nothing of that a term needs; nothing is missing: ''.

    Of labels that no map shows there is nothing, whatever channels they have.
    """
    found = ((part, getattr(known, part)) for part in _parts(term))
    return next((p for p, v in found if v is None or (term == "labels" and not v.any())), "")


def nothing_known(term: str, missing: str, batches: int) -> ValueError:
    """What is wrong where the first batches of a run had nothing that a term needs."""
    return ValueError(
        f"objective.{term} needs {' and '.join(_parts(term))} from the dataset, and no sample of "
        f"the first {batches} batches has {missing}"
    )


def checked_sample(item: Any, name: str) -> Sample:
    """A dict of the protocol as a sample.

    Args:
        item: what a dataset gave; keys that the protocol has not are left alone.
        name: of the sample, for messages.

    Raises:
        TypeError, ValueError: it is no such dict; the key and the sample are named.

    Example:
        >>> import torch
        >>> from diffreg.training.protocol import checked_sample
        >>> image = torch.rand(1, 8, 8)
        >>> checked_sample({"moving": image, "fixed": image}, "sample 0").fixed.shape
        torch.Size([1, 1, 8, 8])
    """
    if not isinstance(item, Mapping):
        raise TypeError(f"{name} must be a dict with moving and fixed, got {type(item).__name__}")
    for key in ("moving", "fixed"):
        if item.get(key) is None:
            raise ValueError(f"{name} must have {key}, {PROTOCOL[key]}; it has {', '.join(item)}")
    for side in ("label", "points"):
        if (item.get(f"moving_{side}") is None) != (item.get(f"fixed_{side}") is None):
            raise ValueError(f"{name} must have moving_{side} and fixed_{side}, or neither")
    fixed = _part(item, "fixed", name, None)
    assert fixed is not None
    parts = {key: _part(item, key, name, fixed) for key in PROTOCOL}
    masks = [part for part in (parts["moving_mask"], parts["fixed_mask"]) if part is not None]
    mask = None if not masks else torch.stack(masks).prod(0)
    labels = parts["moving_label"], parts["fixed_label"]
    maps = [None if label is None or label.is_floating_point() else label for label in labels]
    soft = [
        None if label is None or one is not None else label
        for label, one in zip(labels, maps, strict=True)
    ]
    points = parts["moving_points"], parts["fixed_points"]
    known = Known._make([*soft, *points, parts["displacement"]])
    moving = parts["moving"]
    assert moving is not None
    return Sample(moving, fixed, mask, maps[0], maps[1], (False, False, False), known)


def _part(item: Mapping[str, Any], key: str, name: str, fixed: Tensor | None) -> Tensor | None:
    """One entry, with an axis for the batch, checked; None where there is none."""
    if item.get(key) is None:
        return None
    try:
        values = torch.as_tensor(item[key]).as_subclass(Tensor).detach()  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name}: {key} must be a tensor {PROTOCOL[key]}, got {type(item[key]).__name__}"
        ) from None
    if not _fits(key, values, values if fixed is None else fixed[0]):
        raise ValueError(
            f"{name}: {key} must be {PROTOCOL[key]}, got {list(values.shape)} {values.dtype}"
            + ("" if fixed is None else f", where fixed is {list(fixed.shape[1:])}")
        )
    wrong = torch.isinf(values) if key == "displacement" else ~torch.isfinite(values)
    if wrong.any() and not key.endswith("points"):
        kind = "infinite" if key == "displacement" else "NaN or infinite"
        raise ValueError(f"{name}: {key} has {int(wrong.sum())} numbers that are {kind}")
    if key in ("moving", "fixed") and values.abs().amax() > _FAR:
        warnings.warn(
            f"the dataset's images have values beyond {_FAR}, and about [0, 1] is what networks "
            "and weights are made for: normalise them in __getitem__",
            FileWarning,
            stacklevel=2,
        )
    whole = key.endswith("label") and not values.is_floating_point()
    return (values if whole else values.to(torch.float32))[None]


def _fits(key: str, values: Tensor, fixed: Tensor) -> bool:
    shape, floating = tuple(fixed.shape[1:]), values.is_floating_point()
    if key in ("moving", "fixed"):
        return floating and values.ndim in (3, 4) and values.shape == fixed.shape
    if key.endswith("points"):
        return values.ndim == 2 and values.shape[1] == len(shape)
    if tuple(values.shape[1:]) != shape:
        return False
    if key == "displacement":
        return len(values) == len(shape)
    if key.endswith("mask"):
        return len(values) == 1 and bool((values >= 0).all())
    return len(values) == 1 if not floating else bool(((values >= 0) & (values <= 1)).all())
