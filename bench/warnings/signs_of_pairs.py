"""Every pair of the study registered and measured; what was registered is kept.

20 good and 20 misaligned pairs of each collection count; those that the method brings home all the
same, the networks' results, and pairs of other people or slices stand beside them.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import torch
from aligned import ROOT, Aligned
from misaligned import misaligned
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.normalization import normalize
from diffreg.data.prepare import prepare
from diffreg.data.resampling import coverage
from diffreg.losses import usual_objective
from diffreg.registration import register
from diffreg.registration.result import Registration, registration_of
from diffreg.registration.signs import signs_of
from diffreg.training import load_network
from diffreg.training.pretrained import checkpoint_path

# What a displacement depends on: with other sources, all is registered again.
SOURCES = (
    "ops",
    "fields",
    "losses",
    "data",
    "registration/variational.py",
    "registration/leaving.py",
)
CACHE = ROOT / "build" / "warnings"
NETWORKS = {"hearts": "lunet-cardiac-mr", "MR / simulated CT": "lunet-mr-ct"}
COUNT = 20  # pairs of a collection, good ones and misaligned ones each
# A misaligned pair that ends nearer than this to the truth is none, and another one is drawn.
FAILED_VOXELS, FAILED_MM = 1.5, 3.0


def good_rows(pairs: list[Aligned]) -> Iterator[dict]:
    """As the files lie; of every fourth pair a part of the moving image is missing."""
    for number, pair in enumerate(spread(pairs, COUNT)):
        moving, how = pair.moving, "aligned"
        if number % 4 == 3:
            moving, how = _part_of(pair.moving, np.random.default_rng([1, number]))
        result = registered(f"good {pair.collection} {pair.name} {how}", pair, moving)
        error = None if pair.truth is None else error_of(result, pair.truth)
        yield _row("good", pair, how, result, error)


def misaligned_rows(pairs: list[Aligned], seed: int) -> Iterator[dict]:
    """Draws that fail, and those that turn out well on the way."""
    failed = draw = 0
    while failed < COUNT:
        random = np.random.default_rng([seed, draw])
        pair = pairs[random.integers(len(pairs))]
        truth = pair.truth
        if truth is None:
            reference = registered(f"reference {pair.collection} {pair.name}", pair, pair.moving)
            truth = reference.displacement
        found = misaligned(pair, truth, random)
        name = f"misaligned {pair.collection} {seed} {draw} {pair.name} {found.how}"
        result = registered(name, replace(pair, fixed=found.fixed), found.moving)
        error = error_of(result, found.truth)
        voxel = float(np.mean(found.fixed.spacing))
        limit = (
            FAILED_VOXELS if found.fixed.kind == "png" else max(FAILED_VOXELS * voxel, FAILED_MM)
        )
        kind = "misaligned" if error > limit else "recovered"
        failed += kind == "misaligned"
        draw += 1
        yield _row(kind, pair, found.how, result, error)


def network_rows(pairs: list[Aligned]) -> Iterator[dict]:
    """As the files lie, through the network that ships for them, if one does."""
    collection = pairs[0].collection
    if collection not in NETWORKS:
        return
    trained = load_network(checkpoint_path(NETWORKS[collection]))
    network, normalization = trained["network"], trained["normalization"]
    for pair in spread(pairs, COUNT):
        given = network, None, None, normalization, trained["similarity"]
        result = register(pair.moving, pair.fixed, *given, affine="none")
        error = None if pair.truth is None else error_of(result, pair.truth)
        yield _row("network", pair, "aligned", result, error)


def other_rows(pairs: list[Aligned]) -> Iterator[dict]:
    """Another person's heart, or another slice of the head: nothing there to fit."""
    chosen = spread(pairs, 10)
    for number, pair in enumerate(chosen):
        others = [p for p in pairs if p.similarity == pair.similarity]
        if pair.collection != "heads":
            others = [p for p in others if p.subject != pair.subject]
        other = others[(pairs.index(pair) + len(others) // 2) % len(others)]
        moving = replace(other.moving, affine=pair.moving.affine)
        result = registered(f"other {pair.collection} {number} {pair.name}", pair, moving)
        yield _row("other", pair, f"moving: {other.name}", result, None)


def registered(name: str, pair: Aligned, moving: Image) -> Registration:
    """The result, from its displacement where that is kept."""
    path = CACHE / digest() / ("".join(c if c.isalnum() else "-" for c in name) + ".npz")
    if path.exists():
        with np.load(path) as held:
            displacement = torch.from_numpy(held["displacement"])
    else:
        print(name, flush=True)
        goal = usual_objective(pair.similarity)
        result = register(moving, pair.fixed, objective=goal, affine="none", device="cpu")
        displacement = result.displacement
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path.with_suffix(".part.npz"), displacement=displacement.numpy())
        path.with_suffix(".part.npz").rename(path)
    objective = usual_objective(pair.similarity)
    about = "variational", "+".join(objective.similarity), float("nan"), {}
    return registration_of(prepare(moving, pair.fixed), displacement, *about)


@functools.cache
def digest() -> str:
    """Of the sources that a displacement depends on."""
    found = hashlib.sha256()
    for name in SOURCES:
        place = ROOT / "diffreg" / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def error_of(result: Registration, truth: Tensor) -> float:
    """Mean distance from the truth where the fixed image is not dark, mm (pixels of PNG files)."""
    fixed = result.fixed
    counts = normalize(fixed.data)[0, 0] > 0.1
    counts &= coverage(result.moving, fixed, truth)[0, 0] > 0
    length = torch.tensor(fixed.spacing)[:, None, None]
    return float(((result.displacement - truth)[0] * length).norm(dim=0)[counts].mean())


def spread(pairs: list[Aligned], count: int) -> list[Aligned]:
    places = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [pairs[k] for k in places]


def _part_of(moving: Image, random: np.random.Generator) -> tuple[Image, str]:
    """The image without a strip of up to two fifths at one of its sides."""
    axis, at_end = random.integers(2), random.random() < 0.5
    kept = round(moving.shape[axis] * random.uniform(0.6, 0.9))
    start = 0 if at_end else moving.shape[axis] - kept
    affine = moving.affine.copy()
    affine[:3, 3] += start * affine[:3, axis]
    data = moving.data.narrow(2 + axis, start, kept).contiguous()
    return replace(moving, data=data, affine=affine), f"{100 * kept // moving.shape[axis]} % of it"


def _row(kind: str, pair: Aligned, how: str, result: Registration, error: float | None) -> dict:
    return {
        "kind": kind,
        "collection": pair.collection,
        "subject": pair.subject,
        "pair": pair.name,
        "similarity": pair.similarity,
        "how": how,
        "error": error,
        "signs": asdict(signs_of(result)),
    }
