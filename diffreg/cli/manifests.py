"""What `register` and `evaluate` do with a manifest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffreg.cli.options import (
    affine_of_run,
    network_of,
    normalization_of,
    progress_bar,
    require_writers,
    say_method,
)
from diffreg.cli.variational import OPTIONS, minimised_of
from diffreg.system.ranks import Rank, this_rank

if TYPE_CHECKING:
    from diffreg.data.manifest import Manifest, Pair
    from diffreg.data.normalization import Normalization
    from diffreg.evaluation.result import Measured
    from diffreg.registration.cohort import Cohort, Method

MOST_PAIRS = 50  # of a folder, without --all-pairs


def register_manifest(options: argparse.Namespace) -> int:
    """Every pair of a manifest, each into a folder of its own, and one report."""
    from diffreg.data.manifest import read_manifest
    from diffreg.evaluation.cohort_report import write_cohort_report
    from diffreg.registration.cohort import gathered
    from diffreg.registration.determinants import check_all_cells
    from diffreg.registration.files import METRICS, read_json

    rank = this_rank()
    _check_manifest_options(options)
    require_writers(page=not options.no_report)
    manifest = read_manifest(options.moving)
    method = _method(options, both_ways=False)
    if method.jacobian:
        check_all_cells(manifest, method.slices)
    pairs = _pairs_of_folder(manifest, method, options.all_pairs)
    out = _made(options.out)
    share = _registered(manifest, out, method, pairs, options, rank)
    cohort = share if rank.alone else gathered(manifest, out, method, rank)
    if cohort is None or not _writes(out, rank, cohort):
        return _follows(rank, len(share.jobs), len(share.failed))
    if cohort.jobs:
        print(write_cohort_report(cohort, method, out, page=not options.no_report))
        found = [read_json(job.folder / METRICS).get("warnings", ()) for job in cohort.jobs]
        _warn(found, "each metrics.json")
    return _failures(cohort.failed, cohort.total, out)


def run_evaluate(options: argparse.Namespace) -> int:
    """Metrics of every pair of a manifest, together and by group."""
    from diffreg.evaluation import evaluate, in_short, write_evaluation
    from diffreg.evaluation.cohort_report import counted

    rank = this_rank()
    _check_evaluate_options(options)
    require_writers()
    out, name, share, everyone = _to_measure(options, rank)
    how = not options.contrasts_differ, normalization_of(options, {})
    found = (share, {}) if rank.alone else _of_all_ranks(share, everyone, out, rank, how)
    if found is None:
        return 0
    cohort, known = found
    pairs = [(job.pair, job.folder) for job in cohort.jobs]
    with progress_bar("evaluate") as progress:
        evaluation = evaluate(pairs, name, how[0], options.seed, progress, how[1], known)
    evaluation.failed = [*cohort.failed, *evaluation.failed]
    if evaluation.records:
        write_evaluation(evaluation, out)
        table, labels = in_short(evaluation.summaries)
        print(table.text())
        print(f"{out / 'report.html'}: {counted(len(evaluation.records))}, {name}{labels}")
        _warn([sentences for _, sentences in evaluation.warnings], "evaluation.json")
    total = len(evaluation.records) + len(evaluation.failed)
    return _failures(evaluation.failed, total, out)


def _to_measure(
    options: argparse.Namespace, rank: Rank
) -> tuple[Path, str, Cohort, Callable[[], Cohort | None]]:
    """Output folder, method in words, this rank's pairs, and how to have those of all ranks."""
    from diffreg.data.manifest import read_manifest
    from diffreg.evaluation.given import given
    from diffreg.registration.cohort import gathered
    from diffreg.registration.shares import forget

    manifest = read_manifest(options.manifest)
    if options.displacements is not None:
        out, folder = _checked(options.out), Path(options.displacements)
        forget(out, rank)
        slices = options.by_slice
        share = given(manifest, folder, rank, slices)
        name = f"displacements in {folder}"
        return out, name, share, lambda: given(manifest, folder, slices=slices)
    method = _method(options, both_ways=True)
    if options.affine is None:
        method = replace(method, affine=affine_of_run(options, rank))
    said = _pairs_of_folder(manifest, method, options.all_pairs)
    out = _made(options.out)
    share = _registered(manifest, out, method, said, options, rank)
    return out, method.name, share, lambda: gathered(manifest, out, method, rank)


def _of_all_ranks(
    share: Cohort,
    everyone: Callable[[], Cohort | None],
    out: Path,
    rank: Rank,
    how: tuple[bool, Normalization],
) -> tuple[Cohort, dict[Path, Measured]] | None:
    """This rank's pairs measured, and what all have found; None where others are still at work."""
    from diffreg.evaluation.shares import measure_share, measured

    with progress_bar("evaluate", rank) as progress:
        failed = measure_share(share.jobs, out, rank, how, progress)
    cohort = everyone()
    known = None if cohort is None else measured(cohort.jobs, out, rank, how)
    if cohort is None or known is None or not _writes(out, rank, cohort, known):
        _follows(rank, len(share.jobs) - failed, len(share.failed) + failed)
        return None
    return cohort, known


def _writes(out: Path, rank: Rank, cohort: Cohort, *more: object) -> bool:
    """Whether the report is this rank's to write: of those that find all done, the first one's."""
    from diffreg.registration.shares import claimed

    reasons = [reason for _, reason in cohort.failed]
    return rank.alone or claimed(out, rank, [job.key for job in cohort.jobs], reasons, *more)


def _follows(rank: Rank, done: int, failed: int) -> int:
    """What a rank says that is not the last; the exit status: the last one's counts for all.

    torchrun ends all other ranks where one of them fails.
    """
    from diffreg.evaluation.cohort_report import counted

    lost = f", {failed} failed" if failed else ""
    print(rank.said(f"{counted(done)} done{lost}; the report follows when all ranks are done"))
    return 0


def whole_pairs(options: argparse.Namespace) -> str:
    """What is safe when every pair of a manifest was being registered."""
    out = Path(options.out)
    if getattr(options, "fixed", None) is not None:
        return f"no file in {out} is half-written"
    done = len(list(out.glob("*/metrics.json")))
    pairs = "1 pair is" if done == 1 else f"{done} pairs are"
    return f"{pairs} complete in {out}; the same command goes on from there"


def _pairs_of_folder(manifest: Manifest, method: Method, all_pairs: bool) -> str:
    """How many pairs a folder's images make, in words; nothing of other manifests."""
    from diffreg.data.folders import left_out
    from diffreg.data.slices import count_pairs

    if not manifest.of_folder:
        return ""
    images, count = len(manifest.pairs.images), count_pairs(manifest, method.slices)
    every = "every ordered pair" if len(manifest.pairs.groups) == 1 else "pairs of each subject,"
    slices = ", slice by slice" if count != len(manifest) else ""
    said = f"{manifest.path}: {every} of {images} images{slices}: {count:,} pairs"
    left = left_out(manifest.path) if manifest.path.is_dir() else ""
    if count > MOST_PAIRS and not all_pairs:
        raise ValueError(
            f"{said}; --all-pairs registers them all, a manifest (.csv, .toml) those that it lists"
            f"{left}"
        )
    return said + left


def _registered(
    manifest: Manifest,
    out: Path,
    method: Method,
    said: str,
    options: argparse.Namespace,
    rank: Rank,
) -> Cohort:
    """The rank's pairs registered, with a line about those that were there."""
    from diffreg.registration.cohort import register_all

    if rank.first:
        say_method(options)
    if rank.first and said:
        print(said, file=sys.stderr)
    with progress_bar("register", rank) as progress:
        cohort = register_all(manifest, out, method, progress, rank)
    if cohort.kept:
        line = f"{cohort.kept} of {cohort.total} pairs were complete and are kept"
        print(rank.said(line), file=sys.stderr)
    return cohort


def _warn(warnings: Sequence[Sequence[str]], where: str) -> None:
    """A line that says how many pairs have warnings, if any."""
    count = sum(bool(sentences) for sentences in warnings)
    if count:
        print(
            f"diffreg: warning: {count} of {len(warnings)} pairs may not fit; {where} says why",
            file=sys.stderr,
        )


def _failures(failed: Sequence[tuple[Pair, str]], total: int, out: Path) -> int:
    """A line for each pair that failed, at the end; the exit status."""
    for pair, reason in failed:
        where = f"{pair.row}: " if not reason.startswith(pair.row) else ""
        print(f"diffreg: error: {where}{reason}", file=sys.stderr)
    if failed:
        print(f"diffreg: error: {len(failed)} of {total} pairs failed", file=sys.stderr)
    if failed and out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    return 2 if failed else 0


def _checked(out: str) -> Path:
    """The output folder, which may not exist."""
    from diffreg.registration.folders import check_no_pair, check_output_folder

    folder = check_output_folder(out)
    check_no_pair(folder)
    return folder


def _made(out: str) -> Path:
    """The output folder, made where it does not exist."""
    folder = _checked(out)
    folder.mkdir(exist_ok=True)
    return folder


def _check_manifest_options(options: argparse.Namespace) -> None:
    from diffreg.data.manifest import is_manifest

    path = Path(options.moving)
    if not is_manifest(path) and not path.is_dir():
        raise ValueError(
            f"{path} has no FIXED beside it: give MOVING and FIXED, or one manifest "
            "(a .csv, .tsv, .toml or .json file, or a folder)"
        )
    for option in ("no_composites", "also", "landmarks", "start"):
        if getattr(options, option):
            raise ValueError(f"--{option.replace('_', '-')} is of one pair: leave it out")
    for column in (
        *("fixed_mask", "moving_mask", "fixed_label", "moving_label"),
        *("slice", "moving_slice", "time", "moving_time"),
    ):
        if getattr(options, column) is not None:
            name = column.replace("_", "-")
            raise ValueError(f"--{name} is of one pair; a manifest has the column {column}")


def _check_evaluate_options(options: argparse.Namespace) -> None:
    if options.displacements is None:
        return
    for option in ("checkpoint", "method", *OPTIONS, "refine"):
        if getattr(options, option) not in (None, 0):
            option = option.replace("_", "-")
            raise ValueError(f"--displacements leaves nothing to register: leave out --{option}")


def _method(options: argparse.Namespace, both_ways: bool) -> Method:
    """How the pairs of a manifest are to be registered."""
    from diffreg.registration.cohort import Method
    from diffreg.registration.predict import takes_volumes
    from diffreg.training.pretrained import checkpoint_path

    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    named: dict[str, Any] = {"similarity": "auto", **minimised_of(options)}
    trained = network_of(options)
    method = Method(
        both_ways=both_ways,
        batch_size=options.batch_size,
        guarantee=options.guarantee,
        refine=options.refine,
        fill=options.fill,
        affine=options.affine or "auto",
        search=options.search,
        device=options.device,
        by_slice=options.by_slice,
        jacobian=getattr(options, "jacobian", False),  # evaluate has no such option
    )
    if trained and options.by_slice and takes_volumes(trained["network"]):
        raise ValueError("--by-slice makes slices of volumes, which the network takes whole")
    if trained:
        named = {**trained, "checkpoint": checkpoint_path(options.checkpoint)}
    return replace(method, **{**named, "normalization": normalization_of(options, trained)})
