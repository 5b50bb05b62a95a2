"""What each command does, once its options are read.

Modules are imported by the command that needs them: `diffreg --help` waits for no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffreg.cli.options import (
    find_modules_in,
    network_of,
    normalization_of,
    progress_bar,
    require_writers,
    say_method,
)
from diffreg.cli.steps import one_of, read_steps
from diffreg.cli.variational import beside_of, minimised_of
from diffreg.system.extras import require

if TYPE_CHECKING:
    from diffreg.data.images import Image
    from diffreg.registration.result import Registration
    from diffreg.transforms import Chain


def run_register(options: argparse.Namespace) -> int:
    """One pair, or every pair of a manifest."""
    if options.fixed is None:
        from diffreg.cli.manifests import register_manifest

        return register_manifest(options)
    for option in ("by_slice", "all_pairs"):
        if getattr(options, option):
            name = option.replace("_", "-")
            raise ValueError(f"--{name} is of a manifest or a folder: leave it out")
    from diffreg.data.comparable import check_images
    from diffreg.registration import register
    from diffreg.registration.determinants import check_cells
    from diffreg.registration.folders import REPORT, check_output_folder, check_same_pair
    from diffreg.registration.outlines import labels_shared

    require_writers(page=not options.no_report)
    minimised, trained = minimised_of(options), network_of(options)
    out = check_output_folder(options.out)
    of_moving = options.slice if options.moving_slice is None else options.moving_slice
    time = options.time if options.moving_time is None else options.moving_time
    moving, fixed = read_parts(
        [options.moving, options.fixed], [of_moving, options.slice], [time, options.time]
    )
    check_same_pair(out, moving, fixed)
    mask = _mask(options.fixed_mask, options.slice, options.time)
    moving_mask = _mask(options.moving_mask, of_moving, time)
    labels = _labels(options, of_moving, time)
    check_images(moving, fixed, (mask, moving_mask, *(labels or ())))  # before any word
    if labels is not None:
        labels_shared(*(image.data for image in labels))
    if options.jacobian:
        check_cells(fixed)
    beside = beside_of(options, fixed, (of_moving, options.slice), (time, options.time))
    start = _start(options, fixed, moving)
    method = {**minimised, **trained, **beside}
    say_method(options)
    with progress_bar("register") as progress:
        result = register(
            *(moving, fixed),
            fixed_mask=mask,
            moving_mask=moving_mask,
            progress=progress,
            guarantee=options.guarantee,
            refine=options.refine,
            fill=options.fill,
            affine=options.affine,
            search=options.search,
            start=start,
            device=options.device,
            **{**method, "normalization": normalization_of(options, trained)},
        )
    report = not options.no_report
    composites = not options.no_composites
    result = result.save(out, report, options.jacobian, labels, composites)
    _say_result(result, out / REPORT if report else out)
    return 0


def _start(options: argparse.Namespace, fixed: Image, moving: Image) -> Chain | None:
    """The transform to begin with, where there is one."""
    if not options.start:
        return None
    # Which way it leads is known, also where all of it was inverted.
    steps = replace(read_steps(options.start, fixed, moving), ends=("moving", "fixed"))
    for line in (*steps.notes, steps.order):
        print(line, file=sys.stderr)
    return steps.chain


def _say_result(result: Registration, place: Path) -> None:
    """What was done and what speaks against it, then the verdict."""
    for line in result.how:
        print(line, file=sys.stderr)
    for warning in result.metrics["warnings"]:
        print(f"diffreg: warning: {warning}", file=sys.stderr)
    print(f"{place}: {result.verdict}")


def run_train(options: argparse.Namespace) -> int:
    """Train a network; of several processes that torchrun started, the first one speaks."""
    from diffreg.training.config import Config, load_config
    from diffreg.training.printed import printed
    from diffreg.training.ranks import Ranks, joined
    from diffreg.training.trainer import Trainer

    overrides = [*options.overrides, *(["training.resume=true"] if options.resume else [])]
    if options.config is None and not options.print_config:
        raise ValueError("CONFIG is missing, a TOML file; --print-config writes one to begin with")
    config = load_config(options.config, overrides) if options.config else Config()
    if options.config is not None:
        find_modules_in(Path(options.config).parent)
    if options.print_config:
        print(printed(config))
        return 0
    options.out = config.training.out  # where a disk is full, if one is

    def train(ranks: Ranks) -> str:
        trainer = Trainer(config, ranks=ranks)
        before, wanted = trainer.step, config.training.steps
        if config.training.resume and before == 0 and ranks.first:
            print(f"{config.training.out} has no checkpoint: the run begins anew", file=sys.stderr)
        trainer.train()
        ended = f"; training.steps is {wanted}: give more to go on" if before >= wanted else ""
        return trainer.conclusion + ended

    with joined(config.training.device) as ranks:
        conclusion = train(ranks)  # the trainer ends before the processes part
    if ranks.first:
        print(conclusion)
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """Train and evaluate on the images in the package."""
    from diffreg.demo.run import run

    run(options.out)
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """Time the operators, a training step and a prediction, each beside what users have today."""
    import torch

    from diffreg.benchmark.run import run, write
    from diffreg.benchmark.tables import markdown
    from diffreg.registration.folders import check_output_folder

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that torch sees; there is none here")
    require("nibabel", "the prediction from file to file")
    if options.out:
        require("matplotlib", "the plot")
    out = check_output_folder(options.out) if options.out else None
    result = run(options.quick, options.device, lambda part: print(part, file=sys.stderr))
    print(markdown(result))
    if out is not None:
        out.mkdir(exist_ok=True)
        for path in write(result, out):
            print(path, file=sys.stderr)
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Say what a transform is; without one, what is installed."""
    if options.transform is None:
        from diffreg.cli.info import description

        print("\n".join(description()))
        return 0
    from diffreg.cli.described import described_file

    steps = one_of(options)
    print("\n".join(described_file(options.transform, steps, options.source)))
    return 0


def read_parts(
    paths: Sequence[str],
    slices: Sequence[int | None],
    times: Sequence[int | None],
    label: bool = False,
) -> list[Image]:
    """The images; a slice number is for volumes only, and at least one must be a volume then.

    So are time points and series.
    """
    from diffreg.data.images import count_slices, count_times, read_part

    if any(k is not None for k in slices) and max(map(count_slices, paths)) == 1:
        raise ValueError(f"--slice is for volumes; {' and '.join(paths)} hold one image each")
    if any(k is not None for k in times) and max(map(count_times, paths)) == 1:
        raise ValueError(f"--time is for series; {' and '.join(paths)} have no time points")
    return [read_part(*part, label=label) for part in zip(paths, slices, times, strict=True)]


def _labels(
    options: argparse.Namespace, of_moving: int | None, time: int | None
) -> tuple[Image, Image] | None:
    """The labels of both images, where they are given."""
    moving = _mask(options.moving_label, of_moving, time)
    fixed = _mask(options.fixed_label, options.slice, options.time)
    if (moving is None) != (fixed is None):
        raise ValueError("--moving-label and --fixed-label go together: give both or neither")
    if moving is None or fixed is None:
        return None
    from diffreg.data.labels import doubted

    return doubted(moving), doubted(fixed)


def _mask(path: str | None, index: int | None, time: int | None) -> Image | None:
    """The mask of an image; the slice is for volumes, the time point for series only."""
    if path is None:
        return None
    from diffreg.data.images import read_part

    return read_part(path, index, time, label=True)
