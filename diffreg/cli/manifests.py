"""What `register` and `evaluate` do with a manifest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffreg.cli.options import network_of, normalization_of, progress_bar, similarity_of

if TYPE_CHECKING:
    from diffreg.data.manifest import Manifest, Pair
    from diffreg.registration.cohort import Cohort, Method

MOST_PAIRS = 50  # of a folder, without --all-pairs


def register_manifest(options: argparse.Namespace) -> int:
    """Every pair of a manifest, each into a folder of its own, and one report."""
    from diffreg.evaluation.cohort_report import write_cohort_report
    from diffreg.registration.files import METRICS, read_json

    _check_manifest_options(options)
    manifest = _manifest(options.moving)
    pairs, method = _pairs_of_folder(manifest, options.all_pairs), _method(options, both_ways=False)
    out = _made(options.out)
    similarity_of(options)
    cohort = _registered(manifest, out, method, pairs)
    if cohort.jobs:
        print(f"{out / 'report.html'}: {write_cohort_report(cohort, method, out)}")
        found = [read_json(job.folder / METRICS).get("warnings", ()) for job in cohort.jobs]
        _warn(found, "each metrics.json")
    return _failures(cohort.failed, cohort.total, out)


def run_evaluate(options: argparse.Namespace) -> int:
    """Metrics of every pair of a manifest, together and by group."""
    from diffreg.evaluation import evaluate, summary_table, write_evaluation
    from diffreg.evaluation.cohort_report import counted

    _check_evaluate_options(options)
    manifest = _manifest(options.manifest)
    if options.displacements is not None:
        out = _checked(options.out)
        pairs, failed = _given(manifest, Path(options.displacements))
        name = f"displacements in {options.displacements}"
    else:
        said, method = (
            _pairs_of_folder(manifest, options.all_pairs),
            _method(options, both_ways=True),
        )
        out = _made(options.out)
        similarity_of(options)
        cohort = _registered(manifest, out, method, said)
        pairs, failed = [(job.pair, job.folder) for job in cohort.jobs], cohort.failed
        name = method.name
    with progress_bar("evaluate") as progress:
        one_contrast, normalization = not options.contrasts_differ, normalization_of(options, {})
        settings = name, one_contrast, options.seed, progress, normalization
        evaluation = evaluate(pairs, *settings)
    evaluation.failed = [*failed, *evaluation.failed]
    if evaluation.records:
        write_evaluation(evaluation, out)
        print(summary_table(evaluation.summaries).text())
        print(f"{out / 'report.html'}: {counted(len(evaluation.records))}, {name}")
        _warn([sentences for _, sentences in evaluation.warnings], "evaluation.json")
    total = len(evaluation.records) + len(evaluation.failed)
    return _failures(evaluation.failed, total, out)


def whole_pairs(options: argparse.Namespace) -> str:
    """What is safe when every pair of a manifest was being registered."""
    out = Path(options.out)
    if getattr(options, "fixed", None) is not None:
        return f"no file in {out} is half-written"
    done = len(list(out.glob("*/metrics.json")))
    pairs = "1 pair is" if done == 1 else f"{done} pairs are"
    return f"{pairs} complete in {out}; the same command goes on from there"


def _pairs_of_folder(manifest: Manifest, all_pairs: bool) -> str:
    """How many pairs a folder's images make, in words; nothing of other manifests."""
    from diffreg.data.folders import left_out
    from diffreg.data.slices import count_pairs

    if not manifest.path.is_dir():
        return ""
    images, count = len({pair.moving for pair in manifest}), count_pairs(manifest)
    slices = ", slice by slice" if count != len(manifest) else ""
    said = f"{manifest.path}: every ordered pair of {images} images{slices}: {count:,} pairs"
    if count > MOST_PAIRS and not all_pairs:
        raise ValueError(
            f"{said}; --all-pairs registers them all, a manifest (.csv, .toml) those that it lists"
            f"{left_out(manifest.path)}"
        )
    return said + left_out(manifest.path)


def _registered(manifest: Manifest, out: Path, method: Method, said: str) -> Cohort:
    """Every pair registered, with a line about those that were there."""
    from diffreg.registration.cohort import register_all

    if said:
        print(said, file=sys.stderr)
    with progress_bar("register") as progress:
        cohort = register_all(manifest, out, method, progress)
    if cohort.kept:
        print(f"{cohort.kept} of {cohort.total} pairs were complete and are kept", file=sys.stderr)
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


def _given(
    manifest: Manifest, folder: Path
) -> tuple[list[tuple[Pair, Path]], list[tuple[Pair, str]]]:
    """Each pair with its displacement in a folder, and those that have none."""
    from diffreg.data.slices import numbered
    from diffreg.registration.cohort import PAIR_ERRORS, one_line
    from diffreg.registration.folders import folder_name

    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of displacements {folder} does not exist")
    found, failed = [], []
    for number, pair, error in numbered(manifest, PAIR_ERRORS):
        if error is not None:
            failed.append((pair, one_line(error)))
            continue
        name = folder_name(number, pair)
        places = [folder / name, folder / f"{name}.nii.gz", folder / f"{name}.nii"]
        place = next((path for path in places if path.exists()), None)
        if place is None:
            failed.append(
                (pair, f"{folder} has neither {name}/displacement.nii.gz nor {name}.nii.gz")
            )
        else:
            found.append((pair, place))
    return found, failed


def _manifest(path: str) -> Manifest:
    from diffreg.data.manifest import read_manifest

    return read_manifest(path)


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
    from diffreg.data.manifest import MANIFESTS

    path = Path(options.moving)
    if path.suffix.lower() not in MANIFESTS and not path.is_dir():
        raise ValueError(
            f"{path} has no FIXED beside it: give MOVING and FIXED, or one manifest "
            "(a .csv, .tsv or .toml file, or a folder)"
        )
    for option, column in (
        ("fixed_mask", "fixed_mask"),
        ("moving_mask", "moving_mask"),
        ("slice", "slice"),
        ("moving_slice", "moving_slice"),
    ):
        if getattr(options, option) is not None:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} is of one pair; a manifest has the column {column}")


def _check_evaluate_options(options: argparse.Namespace) -> None:
    if options.displacements is None:
        return
    for option in ("checkpoint", "method", "similarity", "refine"):
        if getattr(options, option) not in (None, 0):
            raise ValueError(f"--displacements leaves nothing to register: leave out --{option}")


def _method(options: argparse.Namespace, both_ways: bool) -> Method:
    """How the pairs of a manifest are to be registered."""
    from diffreg.registration.cohort import Method
    from diffreg.training.pretrained import checkpoint_path

    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    trained = network_of(options)
    method = Method(
        both_ways=both_ways,
        batch_size=options.batch_size,
        guarantee=options.guarantee,
        refine=options.refine,
        fill=options.fill,
    )
    named: dict[str, Any] = {"similarity": options.similarity or "ncc"}
    if trained:
        named = {**trained, "checkpoint": checkpoint_path(options.checkpoint)}
    return replace(method, **{**named, "normalization": normalization_of(options, trained)})
