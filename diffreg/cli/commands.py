"""What each command does, once its options are read.

Modules are imported by the command that needs them: `diffreg --help` waits for no torch.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffreg._extras import require
from diffreg.cli.options import network_of, normalization_of, progress_bar, say_method
from diffreg.cli.variational import beside_of, minimised_of

if TYPE_CHECKING:
    from diffreg.data.images import Image
    from diffreg.registration.result import Registration


def run_register(options: argparse.Namespace) -> int:
    """One pair, or every pair of a manifest."""
    if options.fixed is None:
        from diffreg.cli.manifests import register_manifest

        return register_manifest(options)
    from diffreg.data.prepare import check_images
    from diffreg.registration import register
    from diffreg.registration.determinants import check_cells
    from diffreg.registration.folders import REPORT, check_output_folder, check_same_pair

    minimised, trained = minimised_of(options), network_of(options)
    out = check_output_folder(options.out)
    of_moving = options.slice if options.moving_slice is None else options.moving_slice
    time = options.time if options.moving_time is None else options.moving_time
    moving, fixed = _read(
        [options.moving, options.fixed], [of_moving, options.slice], [time, options.time]
    )
    check_same_pair(out, moving, fixed)
    mask = _mask(options.fixed_mask, options.slice, options.time)
    moving_mask = _mask(options.moving_mask, of_moving, time)
    labels = _labels(options, of_moving, time)
    check_images(moving, fixed, (mask, moving_mask))  # before any word
    if options.jacobian:
        check_cells(fixed)
    beside = beside_of(options, (of_moving, options.slice), (time, options.time))
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
            device=options.device,
            **{**method, "normalization": normalization_of(options, trained)},
        )
    report = not options.no_report
    result = result.save(out, report, jacobian=options.jacobian, labels=labels)
    _say_result(result, out / REPORT if report else out)
    return 0


def _say_result(result: Registration, place: Path) -> None:
    """What was done and what speaks against it, then the verdict."""
    for line in result.how:
        print(line, file=sys.stderr)
    for warning in result.metrics["warnings"]:
        print(f"diffreg: warning: {warning}", file=sys.stderr)
    print(f"{place}: {result.verdict}")


def run_apply(options: argparse.Namespace) -> int:
    """Warp another image by a displacement file."""
    from diffreg._files import require_folder
    from diffreg.data.affine import read_affine
    from diffreg.data.images import check_ending, write_image
    from diffreg.data.resampling import coverage, resample_to, usual_fill
    from diffreg.registration.devices import device_named
    from diffreg.registration.files import read_map

    out = Path(options.out)
    displacement, affine, grid = read_map(options.displacement)
    if options.affine is not None:
        affine = read_affine(options.affine)
    check_ending(out, grid)
    require_folder(out.absolute().parent, "the output's folder")
    image, interpolation = _to_warp(options)
    nearest = interpolation == "nearest"
    if grid.kind == "png" and image.kind != "png":
        raise ValueError(f"{image.name} must be a picture, as those that were registered")
    image = image.placed(affine)
    displacement = displacement.to(device_named(options.device))
    coverage(image, grid)
    fill = options.fill
    if fill is None:
        fill = 0.0 if nearest else usual_fill(image)
    warped = resample_to(image, grid, displacement, interpolation, fill).cpu()
    write_image(out, warped, grid, image.dtype if nearest or grid.kind == "png" else None)
    if nearest and options.interpolation is None:
        line = f"{options.image}: labels, so nearest; --interpolation linear blends them"
        print(line, file=sys.stderr)
    _say_affine_beside(options)
    print(f"{out}: {options.image} on the grid of {options.displacement}, {interpolation}")
    return 0


def run_certify(options: argparse.Namespace) -> int:
    """Say whether a displacement folds, and whether the affine map beside it mirrors."""
    from diffreg.data.transforms import read_field
    from diffreg.fields import fold_certificate, largest_safe_scale
    from diffreg.registration.devices import device_named
    from diffreg.registration.folders import DISPLACEMENT

    path = options.displacement
    path = Path(path) / DISPLACEMENT if Path(path).is_dir() else path
    displacement = read_field(path).to(device_named(options.device))
    mirrors = _mirrors(options.affine, Path(path))  # read before any answer: it may be damaged
    certificate = fold_certificate(displacement, options.threshold)
    print(f"{path}: {certificate}")
    if certificate.folded_cells and options.threshold < 1:
        scale = largest_safe_scale(displacement, options.threshold, limit=1.0)
        scale = math.floor(1e4 * scale) / 1e4
        print(f"on the way from 0 to it no cell fails before {scale:.4f} of the displacement")
    if mirrors:
        print(mirrors)
    return 0 if not mirrors and certificate.passes else 1


def _mirrors(affine: str | None, displacement: Path) -> str:
    """What is to say where the affine map of a displacement turns space inside out, else nothing.

    The determinant of the whole map in RAS mm is that of the displacement in voxels times its own.
    """
    import numpy as np

    from diffreg.data.affine import read_affine
    from diffreg.registration.folders import AFFINE

    beside = displacement.absolute().parent / AFFINE
    if affine is None and not beside.exists():
        return ""
    path = beside if affine is None else Path(affine)
    determinant = float(np.linalg.det(read_affine(path)[:3, :3]))
    if determinant < 0:
        return f"{path}: the affine map mirrors: its determinant is {determinant:.4g}"
    return ""


def run_train(options: argparse.Namespace) -> int:
    """Train a network; of several processes that torchrun started, the first one speaks."""
    from diffreg.training.config import load_config
    from diffreg.training.ranks import Ranks, joined
    from diffreg.training.trainer import Trainer

    overrides = [*options.overrides, *(["training.resume=true"] if options.resume else [])]
    config = load_config(options.config, overrides)

    def train(ranks: Ranks) -> str:
        trainer = Trainer(config, ranks=ranks)
        trainer.train()
        return trainer.conclusion

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
    """Say what is installed."""
    from diffreg.cli.info import description

    print("\n".join(description()))
    return 0


def _read(
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


def _to_warp(options: argparse.Namespace) -> tuple[Image, str]:
    """The image of `apply` and its interpolation: nearest for labels, where nothing is said."""
    from diffreg.data.labels import looks_like_labels

    def read(interpolation: str) -> Image:
        return _read(
            [options.image], [options.slice], [options.time], label=interpolation == "nearest"
        )[0]

    if options.interpolation is not None:
        return read(options.interpolation), options.interpolation
    try:
        labels = read("nearest")
    except ValueError:  # not whole numbers, or no image: which of them, the other way says
        return read("linear"), "linear"
    return (labels, "nearest") if looks_like_labels(labels) else (read("linear"), "linear")


def _say_affine_beside(options: argparse.Namespace) -> None:
    """A displacement that is one half of a map is seldom meant alone."""
    from diffreg.registration.folders import AFFINE

    beside = Path(options.displacement).absolute().parent / AFFINE
    if options.affine is None and Path(options.displacement).is_file() and beside.exists():
        line = f"the displacement alone: {beside.name} lies beside it; its folder in its place, or "
        print(f"{line}--affine, applies both", file=sys.stderr)


def _labels(
    options: argparse.Namespace, of_moving: int | None, time: int | None
) -> tuple[Image, Image] | None:
    """The labels of both images, where they are given."""
    moving = _mask(options.moving_label, of_moving, time)
    fixed = _mask(options.fixed_label, options.slice, options.time)
    if (moving is None) != (fixed is None):
        raise ValueError("--moving-label and --fixed-label go together: give both or neither")
    return None if moving is None or fixed is None else (moving, fixed)


def _mask(path: str | None, index: int | None, time: int | None) -> Image | None:
    """The mask of an image; the slice is for volumes, the time point for series only."""
    if path is None:
        return None
    from diffreg.data.images import read_part

    return read_part(path, index, time, label=True)
