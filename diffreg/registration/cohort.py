"""Every pair of a manifest, registered: what is done is kept, what fails loses nothing else.

Each pair has a folder of its own, numbered as the manifest; its metrics.json, which appears last,
says what it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from torch import nn

from diffreg import __version__
from diffreg.data._npz import split_array
from diffreg.data.images import Image, Normalization, count_slices, read_image
from diffreg.data.manifest import Manifest, Pair
from diffreg.data.prepare import PairImages, Prepared
from diffreg.data.slices import numbered
from diffreg.losses import Objective, usual_objective
from diffreg.registration.files import DISPLACEMENT, METRICS, read_json, write_registration
from diffreg.registration.pair import Registration, register, register_batch

# What one pair may raise without losing the others; a fault of the program is none of them.
MISTAKES = (ValueError, TypeError, OSError, MemoryError)


@dataclass(frozen=True)
class Method:
    """How every pair is registered.

    Args:
        network: None: the variational method.
        normalization: as the network was trained with.
        similarity: what is minimised, or what the network was trained with.
        checkpoint: the network's file, which tells a result from that of another one.
        both_ways: register fixed onto moving too, for the inverse consistency.
        batch_size: pairs of one size that a network gets together.
        guarantee: repair displacements where they fold.
        objective: of the refinement, as the network was trained with.
        refine: at most so many variational steps from the network's displacement.
        fill: the intensity outside the moving image; None: the usual one.
    """

    network: nn.Module | None = None
    normalization: Normalization | None = None
    similarity: str | None = None
    checkpoint: Path | None = None
    both_ways: bool = False
    batch_size: int = 8
    guarantee: bool = False
    objective: Objective | None = None
    refine: int = 0
    fill: float | None = None

    @property
    def name(self) -> str:
        """In words."""
        if self.network is None:
            return f"variational, {self.similarity or 'ncc'}"
        name = f"network {self.checkpoint.name}" if self.checkpoint else "network"
        return f"{name}, refined by {self.refine} steps" if self.refine else name


@dataclass(frozen=True)
class Job:
    """One pair, where its results go, and what they are to be made of.

    Args:
        pair: the two images.
        folder: its own.
        request: a hash of files, slices and method.
    """

    pair: Pair
    folder: Path
    request: str

    @property
    def done(self) -> bool:
        """Whether the folder holds the results of just this."""
        if not (self.folder / METRICS).is_file() or not (self.folder / DISPLACEMENT).is_file():
            return False
        try:
            return read_json(self.folder / METRICS).get("request") == self.request
        except (ValueError, OSError):
            return False


@dataclass
class Cohort:
    """What came of a manifest.

    Args:
        jobs: the pairs whose results are there, in the manifest's order.
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


def register_all(
    manifest: Manifest,
    out: Path,
    method: Method,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Register every pair of a manifest, each into its folder in `out`.

    Args:
        manifest: the pairs; volumes without a slice are taken slice by slice.
        out: an existing folder.
        method: how.
        progress: called with (pairs done, pairs).

    Returns:
        Which pairs are done, and which failed.

    Raises:
        OSError: the results could not be written.

    Example: `register_all(read_manifest("pairs.csv"), Path("out"), Method())`
    """
    cohort = Cohort()
    jobs = list(_jobs(manifest, out, method, cohort))
    cohort.jobs = [job for job in jobs if job.done]
    cohort.kept = len(cohort.jobs)
    kept = {job.folder for job in cohort.jobs}
    left = [job for job in jobs if job.folder not in kept]
    show = progress or (lambda done, at_most: None)
    show(cohort.kept, len(jobs))
    run = _one_by_one if method.network is None else _in_batches
    for job, result in run(left, method):
        if isinstance(result, str):
            cohort.failed.append((job.pair, result))
        else:
            more = {"request": job.request, "group": job.pair.group, "row": job.pair.row}
            write_registration(result, job.folder, report=False, more=more)
            cohort.jobs.append(job)
        show(len(cohort.jobs) + len(cohort.failed), len(jobs))
    order = {job.folder: k for k, job in enumerate(jobs)}
    cohort.jobs.sort(key=lambda job: order[job.folder])
    return cohort


def read_pair(pair: Pair) -> PairImages:
    """The images of a pair.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read.

    Example: `read_pair(pair).prepared()`
    """

    def mask(path: Path | None, index: int | None) -> Image | None:
        return None if path is None else _read(path, index, label=True)

    return PairImages(
        _read(pair.moving, pair.moving_slice),
        _read(pair.fixed, pair.fixed_slice),
        mask(pair.fixed_mask, pair.fixed_slice),
        mask(pair.moving_mask, pair.moving_slice),
    )


def read_labels(pair: Pair) -> tuple[Image, Image] | None:
    """The label maps of both images of a pair, None where it has none."""
    if pair.moving_label is None or pair.fixed_label is None:
        return None
    return (
        _read(pair.moving_label, pair.moving_slice, label=True),
        _read(pair.fixed_label, pair.fixed_slice, label=True),
    )


def folder_name(number: int, pair: Pair) -> str:
    """What the folder of pair `number` is called: "0003_moving_to_fixed".

    Example:
        >>> from pathlib import Path
        >>> from diffreg.registration.cohort import folder_name
        >>> folder_name(3, Pair(Path("a/es.nii.gz"), Path("a/ed.nii.gz"), moving_slice=2))
        '0003_es_to_ed_2'
    """
    moving, fixed = (_stem(path) for path in (pair.moving, pair.fixed))
    index = pair.moving_slice if pair.fixed_slice is None else pair.fixed_slice
    where = "" if index is None else f"_{index}"
    return f"{number:04d}_{moving}_to_{fixed}{where}"


def _stem(path: Path) -> str:
    file, array = split_array(path)
    name = array or file.name.removesuffix(".gz").rpartition(".")[0]
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name)[:60]


def _jobs(manifest: Manifest, out: Path, method: Method, cohort: Cohort) -> Iterator[Job]:
    """Every pair with its folder; those that cannot be opened are put among the failed."""
    network = ""
    if method.checkpoint is not None:
        network = hashlib.sha256(method.checkpoint.read_bytes()).hexdigest()
    for number, pair, error in numbered(manifest, MISTAKES):
        if error is not None:
            cohort.failed.append((pair, one_line(error)))
        else:
            request = _request(pair, method, network)
            yield Job(pair, out / folder_name(number, pair), request)


def _request(pair: Pair, method: Method, network: str) -> str:
    """A hash of what a result depends on."""
    images = (pair.moving, pair.fixed, pair.fixed_mask, pair.moving_mask)
    files = [path for path in images if path is not None]
    states = [split_array(path)[0].stat() for path in files]
    parts = [
        __version__,
        [str(path) for path in files],
        [(state.st_size, state.st_mtime_ns) for state in states],
        [pair.moving_slice, pair.fixed_slice],
        [method.similarity, network, method.both_ways, method.guarantee, method.refine],
        [method.fill, method.normalization and astuple(method.normalization)],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _one_by_one(jobs: Sequence[Job], method: Method) -> Iterator[tuple[Job, Registration | str]]:
    """By the variational method."""
    for job in jobs:
        try:
            images = read_pair(job.pair)
            result = register(
                *(images.moving, images.fixed),
                mask=images.mask,
                moving_mask=images.moving_mask,
                objective=usual_objective(method.similarity or "ncc"),
                normalization=method.normalization,
                both_ways=method.both_ways,
                guarantee=method.guarantee,
                fill=method.fill,
            )
        except MISTAKES as error:
            yield job, one_line(error)
        else:
            yield job, result


def _in_batches(jobs: Sequence[Job], method: Method) -> Iterator[tuple[Job, Registration | str]]:
    """Through the network, neighbours of one size together."""
    network = method.network
    assert network is not None
    waiting: list[tuple[Job, Prepared]] = []

    def flush() -> Iterator[tuple[Job, Registration | str]]:
        if waiting:
            pairs = [prepared for _, prepared in waiting]
            results = register_batch(
                *(pairs, network, method.similarity, method.both_ways),
                guarantee=method.guarantee,
                objective=method.objective,
                refine=method.refine,
                fill=method.fill,
            )
            for (job, _), result in zip(waiting, results, strict=True):
                yield job, one_line(result) if isinstance(result, ValueError) else result
            waiting.clear()

    for job in jobs:
        try:
            prepared = read_pair(job.pair).prepared(method.normalization)
        except MISTAKES as error:
            yield job, one_line(error)
            continue
        if waiting and waiting[0][1].fixed.shape != prepared.fixed.shape:
            yield from flush()
        waiting.append((job, prepared))
        if len(waiting) >= method.batch_size:
            yield from flush()
    yield from flush()


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; some have none."""
    return " ".join(str(error).split()) or type(error).__name__


def _read(path: Path, index: int | None, label: bool = False) -> Image:
    """An image; the slice is for volumes only."""
    return read_image(path, index if count_slices(path) > 1 else None, label)
