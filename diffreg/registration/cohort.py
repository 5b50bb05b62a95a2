"""Every pair of a manifest, registered: what is done is kept, what fails loses nothing else.

Each pair has a folder of its own, numbered as the manifest; its metrics.json, which appears last,
says what it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from itertools import chain
from pathlib import Path

from diffreg import __version__
from diffreg.affine.start import Start, affine_start
from diffreg.data.images import Image, read_part
from diffreg.data.labels import doubted
from diffreg.data.manifest import Manifest, Pair
from diffreg.data.prepare import PairImages, Prepared
from diffreg.data.slices import numbered
from diffreg.data.store import state_of
from diffreg.registration.determinants import check_cells
from diffreg.registration.files import add_determinants, write_registration
from diffreg.registration.folders import check_some_listed, folder_name, place_from
from diffreg.registration.jobs import Cohort, Job, Method
from diffreg.registration.judgement import started
from diffreg.registration.pair import Registration, register, register_batch
from diffreg.registration.shares import FAILED, forget, tell, told
from diffreg.system.atomic import FULL, remove_leftovers
from diffreg.system.ranks import ALONE, Rank

# What one pair may raise without losing the others; a fault of the program is none of them, nor is
# a full disk.
PAIR_ERRORS = (ValueError, TypeError, OSError, MemoryError)


def register_all(
    manifest: Manifest,
    out: Path,
    method: Method,
    progress: Callable[[int, int], None] | None = None,
    rank: Rank = ALONE,
) -> Cohort:
    """Register every pair of a manifest, each into its folder in `out`.

    Args:
        manifest: the pairs.
        out: an existing folder.
        method: how.
        progress: called with (pairs done, pairs).
        rank: of several processes, each registers its share: `gathered` puts them together.

    Returns:
        Which pairs of the share are done, and which failed.

    Raises:
        OSError: the disk is full.
        ValueError: `out` holds the results of another manifest.

    Example: `register_all(read_manifest("pairs.csv"), Path("out"), Method())`
    """
    jobs, closed = _jobs(manifest, out, method)
    check_some_listed(out, (job.pair for job in jobs))
    forget(out, rank)
    if rank.alone:  # ranks of other machines have numbers of their own
        remove_leftovers(out)
    jobs = [job for job in jobs if rank.takes(job.number)]
    failed = {number: entry for number, entry in closed.items() if rank.takes(number)}
    there = [job for job in jobs if job.done]
    folders, total = {job.folder for job in there}, len(jobs) + len(failed)
    show = progress or (lambda done, at_most: None)
    show(len(there) + len(failed), total)
    run = _one_by_one if method.network is None else _in_batches
    new = run([job for job in jobs if job.folder not in folders], method)
    done, news = [], {}
    for job, result in chain(((job, None) for job in there), new):
        error = result if isinstance(result, str) else _written(result, job, method.jacobian)
        if error is None:
            done.append(job)
        else:
            failed[job.number] = (job.pair, error)
            news[job.key] = error
        show(min(max(len(there), len(done)) + len(failed), total), total)
    tell(out, rank, FAILED, news)
    return _cohort(done, failed, sum(job.folder in folders for job in done))


def gathered(manifest: Manifest, out: Path, method: Method, rank: Rank) -> Cohort | None:
    """What came of the shares of all ranks; asked by each once its own is done.

    Args:
        manifest, out, method: as they were given to `register_all`.
        rank: one of those that work on it.

    Returns:
        As one process would have it; None while a pair is neither done nor known to have failed.

    Example: `gathered(manifest, out, method, this_rank())`
    """
    jobs, failed = _jobs(manifest, out, method)
    errors = told(out, rank, FAILED)
    done = [job for job in jobs if job.done and job.key not in errors]
    folders = {job.folder for job in done}
    for job in jobs:
        if job.folder in folders:
            continue
        if job.key not in errors:
            return None
        failed[job.number] = (job.pair, errors[job.key])
    return _cohort(done, failed)


def _cohort(done: Sequence[Job], failed: Mapping[int, tuple[Pair, str]], kept: int = 0) -> Cohort:
    """In the manifest's order."""
    jobs = sorted(done, key=lambda job: job.number)
    return Cohort(jobs, kept, [failed[number] for number in sorted(failed)])


def _written(result: Registration | None, job: Job, jacobian: bool) -> str | None:
    """Writes a pair's results; why that was impossible, None where it was done.

    Args:
        result: None where all but the maps of the determinant is written.
        job: the pair.
        jacobian: whether it gets those maps.
    """
    more = {"request": job.request, "group": job.pair.group, "row": job.pair.row}
    write = partial(write_registration, report=False, composites=False, jacobian=jacobian)
    try:
        if result is not None:
            write(result, job.folder, more=more)
        elif jacobian:
            add_determinants(job.folder)
    except PAIR_ERRORS as error:
        if not isinstance(error, OSError) or error.strerror is None:
            return one_line(error)
        if error.errno in FULL:
            raise
        return f"{job.folder}: {error.strerror.lower()}"
    return None


def read_pair(pair: Pair, jacobian: bool = False) -> PairImages:
    """The images of a pair.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read; for `jacobian`, as `check_cells`.

    Example: `read_pair(pair).prepared()`
    """

    def mask(path: Path | None, index: int | None, time: int | None) -> Image | None:
        return None if path is None else read_part(path, index, time, label=True)

    fixed = read_part(pair.fixed, pair.fixed_slice, pair.fixed_time)
    if jacobian:
        check_cells(fixed)
    return PairImages(
        read_part(pair.moving, pair.moving_slice, pair.moving_time),
        fixed,
        mask(pair.fixed_mask, pair.fixed_slice, pair.fixed_time),
        mask(pair.moving_mask, pair.moving_slice, pair.moving_time),
    )


def read_labels(pair: Pair) -> tuple[Image, Image] | None:
    """The label maps of both images of a pair, None where it has none."""
    if pair.moving_label is None or pair.fixed_label is None:
        return None
    return (
        doubted(read_part(pair.moving_label, pair.moving_slice, pair.moving_time, label=True)),
        doubted(read_part(pair.fixed_label, pair.fixed_slice, pair.fixed_time, label=True)),
    )


def _jobs(
    manifest: Manifest, out: Path, method: Method
) -> tuple[list[Job], dict[int, tuple[Pair, str]]]:
    """Every pair with its folder; and, by their numbers, those that cannot be opened, and why."""
    network = ""
    if method.checkpoint is not None:
        network = hashlib.sha256(method.checkpoint.read_bytes()).hexdigest()
    jobs, closed = [], {}
    for number, pair, error in numbered(manifest, PAIR_ERRORS, method.slices):
        if error is not None:
            closed[number] = (pair, one_line(error))
        else:
            request = _request(pair, method, network, out)
            jobs.append(Job(number, pair, out / folder_name(number, pair), request))
    return jobs, closed


def _request(pair: Pair, method: Method, network: str, out: Path) -> str:
    """A hash of what a result depends on; files by their places seen from `out`."""
    images = (pair.moving, pair.fixed, pair.fixed_mask, pair.moving_mask)
    files = [path for path in images if path is not None]
    parts = [
        __version__,
        [None if path is None else place_from(path, out) for path in images],
        [state_of(path) for path in files],
        [pair.moving_slice, pair.fixed_slice, pair.moving_time, pair.fixed_time],
        [method.similarity, network, method.both_ways, method.guarantee, method.refine],
        [method.fill, method.normalization and astuple(method.normalization)],
        [method.affine, method.search],
        [method.preset, method.weights, method.levels, method.iterations, method.composed_steps],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _one_by_one(jobs: Sequence[Job], method: Method) -> Iterator[tuple[Job, Registration | str]]:
    """By the variational method."""
    for job in jobs:
        try:
            images = read_pair(job.pair, method.jacobian)
            with _telling_memory():
                result = register(
                    *(images.moving, images.fixed),
                    fixed_mask=images.mask,
                    moving_mask=images.moving_mask,
                    preset=method.preset,
                    similarity=method.similarity or "auto",
                    weights=method.weights,
                    levels=method.levels,
                    iterations=method.iterations,
                    composed_steps=method.composed_steps,
                    affine=method.affine,
                    search=method.search,
                    device=method.device,
                    normalization=method.normalization,
                    both_ways=method.both_ways,
                    guarantee=method.guarantee,
                    fill=method.fill,
                )
        except PAIR_ERRORS as error:
            yield job, one_line(error)
        else:
            yield job, result


def _in_batches(jobs: Sequence[Job], method: Method) -> Iterator[tuple[Job, Registration | str]]:
    """Through the network, neighbours of one size together; volumes one by one."""
    together = method.batch_size if method.slices else 1
    waiting: list[tuple[Job, Prepared, Start]] = []

    def flush() -> Iterator[tuple[Job, Registration | str]]:
        results = _through_network([prepared for _, prepared, _ in waiting], method)
        for (job, _, start), result in zip(waiting, results, strict=True):
            if isinstance(result, Registration):
                yield job, started(result, start)
            else:
                yield job, one_line(result)
        waiting.clear()

    for job in jobs:
        try:
            images = read_pair(job.pair, method.jacobian)
            how = method.affine, method.similarity, method.search, method.normalization
            start = affine_start(images, *how)
            prepared = images.prepared(method.normalization, start.matrix)
        except PAIR_ERRORS as error:
            yield job, one_line(error)
            continue
        if waiting and waiting[0][1].fixed.shape != prepared.fixed.shape:
            yield from flush()
        waiting.append((job, prepared, start))
        if len(waiting) >= together:
            yield from flush()
    yield from flush()


def _through_network(
    pairs: Sequence[Prepared], method: Method
) -> Sequence[Registration | Exception]:
    """Together; where that is impossible one by one, and the error of each that is."""
    assert method.network is not None
    if not pairs:
        return []
    try:
        with _telling_memory():
            return register_batch(
                *(pairs, method.network, method.trained_with, method.both_ways),
                guarantee=method.guarantee,
                objective=method.objective,
                refine=method.refine,
                fill=method.fill,
                trained_on=method.trained_on,
                contrast_free=method.contrast_free,
            )
    except PAIR_ERRORS as error:
        if len(pairs) == 1:
            return [error]
    return [result for pair in pairs for result in _through_network([pair], method)]


@contextmanager
def _telling_memory() -> Iterator[None]:
    """torch says by a RuntimeError that there is not enough memory: that is the pair's fault."""
    try:
        yield
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            raise MemoryError("there is not enough memory for images of this size") from None
        raise


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; some have none."""
    return " ".join(str(error).split()) or type(error).__name__
