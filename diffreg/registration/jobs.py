"""What is to be done with a manifest, pair by pair, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from diffreg.data.images import Normalization
from diffreg.data.manifest import Pair
from diffreg.data.voxels import Voxels
from diffreg.losses import Objective
from diffreg.registration._json import read_json
from diffreg.registration.folders import AFFINE, DISPLACEMENT, METRICS
from diffreg.registration.predict import takes_volumes
from diffreg.registration.provenance import mixture_in_words

GIVEN = "given"


@dataclass(frozen=True)
class Method:
    """How every pair is registered.

    Args:
        network: None: the variational method.
        normalization: as the network was trained with.
        similarity: what is minimised, or what the network was trained with.
        preset, weights, levels, iterations, composed_steps: of the variational method, as
            `register` takes them.
        checkpoint: the network's file, which tells a result from that of another one.
        both_ways: register fixed onto moving too, for the inverse consistency.
        batch_size: pairs of one size that a network of images gets together.
        guarantee: repair displacements where they fold.
        objective: of the refinement, as the network was trained with.
        refine: at most so many variational steps from the network's displacement.
        fill: the intensity outside the moving image; None: the usual one.
        affine: the start, as `register` takes it.
        search: look for large turns too.
        device: of the variational method.
        by_slice: take volumes slice by slice; so does a network of images.
        trained_on: the voxels that the network knows.
        contrast_free: whether the network was trained for any contrast.
        jacobian: write the maps of the determinant too, of pairs that are kept as well.
    """

    network: nn.Module | None = None
    normalization: Normalization | None = None
    similarity: str | Mapping[str, float] | None = None
    checkpoint: Path | None = None
    both_ways: bool = False
    batch_size: int = 8
    guarantee: bool = False
    objective: Objective | None = None
    refine: int = 0
    fill: float | None = None
    affine: str = "auto"
    search: bool = False
    device: str = "auto"
    by_slice: bool = False
    preset: str | None = None
    weights: Sequence[float] | None = None
    levels: int | None = None
    iterations: int | Sequence[int] | None = None
    composed_steps: int | Sequence[int] | None = None
    trained_on: Voxels | None = None
    contrast_free: bool = False
    jacobian: bool = False

    @property
    def slices(self) -> bool:
        """Whether volumes are taken slice by slice."""
        return self.by_slice or (self.network is not None and not takes_volumes(self.network))

    @property
    def name(self) -> str:
        """In words."""
        if self.network is None:
            return f"variational, {self.minimised}"
        name = f"network {self.checkpoint.name}" if self.checkpoint else "network"
        return f"{name}, refined by {self.refine} steps" if self.refine else name

    @property
    def trained_with(self) -> str | None:
        """What a network was trained with, if that is known."""
        return self.similarity if isinstance(self.similarity, str) else None

    @property
    def minimised(self) -> str:
        """What was asked for of the variational method, in words."""
        named = self.similarity or ("auto" if self.preset is None else "")
        words = [named if isinstance(named, str) else mixture_in_words(named)]
        if self.preset is not None:
            words.insert(0, f"preset {self.preset}")
        if self.weights is not None:
            words.append(f"weights {', '.join(f'{weight:g}' for weight in self.weights)}")
        return ", ".join(filter(None, words))


@dataclass(frozen=True)
class Job:
    """One pair, where its results go, and what they are to be made of.

    Args:
        number: in the manifest, from 1.
        pair: the two images.
        folder: its own; of a displacement that is given, it may be its file.
        request: a hash of files, slices and method; GIVEN where the displacement is.
    """

    number: int
    pair: Pair
    folder: Path
    request: str

    @property
    def key(self) -> str:
        """What ranks tell each other of it by."""
        return f"{self.folder.name} {self.request}"

    @property
    def done(self) -> bool:
        """Whether the folder holds the results of just this."""
        try:
            there = all((self.folder / name).is_file() for name in (DISPLACEMENT, AFFINE))
            return there and read_json(self.folder / METRICS).get("request") == self.request
        except (ValueError, OSError):
            return False


@dataclass
class Cohort:
    """What came of a manifest, or of one rank's share of it; in the manifest's order.

    Args:
        jobs: the pairs whose results are there.
        kept: how many of them were there before.
        failed: the pairs that could not be registered, and why, in one line each.
    """

    jobs: list[Job] = field(default_factory=list)
    kept: int = 0
    failed: list[tuple[Pair, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All pairs, of volumes all slices."""
        return len(self.jobs) + len(self.failed)
