"""The demonstration: two volumes at once, then two trainings, held-out slices, one report.

Trains as `heads/same_contrast.toml` and `heads/cross_contrast.toml` say, measures on slices that
the training never saw, and leaves report, images and checkpoints.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffreg import __version__
from diffreg.data.images import write_image
from diffreg.data.resampling import resample_to
from diffreg.data.transforms import read_displacement, write_displacement
from diffreg.demo.first import show_first
from diffreg.demo.measures import (
    HEADS,
    HELD_OUT,
    METHODS,
    Case,
    Target,
    displacements,
    mean,
    table,
    targets,
)
from diffreg.demo.report import CREDITS, WHAT_IT_SHOWS, Result, case_view, write_demo_report
from diffreg.registration._json import read_json
from diffreg.system.atomic import replacing
from diffreg.system.extras import require
from diffreg.training.config import Config, load_config
from diffreg.training.trainer import Trainer


@dataclass(frozen=True)
class Task:
    """One training and the directions in which it is measured.

    Args:
        name: of its TOML file in the package and of its folder among the results.
        title: what curves are called.
        usual: what the training takes on two cores of a quiet machine, in words.
        directions: (moving, fixed), files of the package.
    """

    name: str
    title: str
    usual: str
    directions: tuple[tuple[str, str], ...]


TASKS = (
    Task(
        "same_contrast",
        "T1 to T1",
        "30 seconds",
        (("colin27_t1", "mni152_t1"), ("mni152_t1", "colin27_t1")),
    ),
    Task("cross_contrast", "T1 to grey matter", "45 seconds", (("colin27_t1", "mni152_gm"),)),
)
STAGES = 2 + len(TASKS)  # the first registration, the trainings, the held-out pairs


def run(
    out: str | Path = "demo", overrides: Sequence[str] = (), progress: bool = True
) -> list[Target]:
    """Register two heads at once; then train, measure, and report on slices that were held out.

    A run that was stopped goes on from its checkpoint.

    Args:
        out: the folder of the results; it is made where it does not exist.
        overrides: "section.key=value" of both trainings, such as "training.steps=10".
        progress: whether to draw progress bars.

    Returns:
        The lines that the demo has to meet, each with whether it does.

    Raises:
        ValueError: the folder cannot be written to, or holds another run's checkpoint.

    Example: `run("demo")`
    """
    start = time.perf_counter()
    out = Path(out)
    if (out / "metrics.json").exists() and "held_out_slices" not in read_json(out / "metrics.json"):
        raise ValueError(f"{out} holds other results than the demo's: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    print(f"diffreg {__version__} demo. {WHAT_IT_SHOWS}\n{CREDITS[0]}", flush=True)
    configs = {task.name: settings(task, out, overrides) for task in TASKS}
    announce(1, "two heads as from two scanners, volumes, without any training", "20 seconds")
    show_first(out)
    networks = {}
    for number, task in enumerate(TASKS, start=2):
        announce(number, f"training a network for {task.title}, without ground truth", task.usual)
        networks[task.name] = train(task, configs[task.name], progress)
    announce(STAGES, "five methods on the slices that no training saw", "5 seconds")
    tqdm = require("tqdm", "progress bars")
    cases = [
        (task, Case(moving, fixed, k))
        for task in TASKS
        for moving, fixed in task.directions
        for k in HELD_OUT
    ]
    bar = tqdm.tqdm(cases, desc="held-out pairs", unit="pair", disable=not progress)
    results = [
        measured(case, networks[task.name], configs[task.name], out / task.name)
        for task, case in bar
    ]
    return conclude(results, out, time.perf_counter() - start, configs)


def announce(stage: int, words: str, usual: str) -> None:
    """What a stage does, and how long it takes on two cores of a quiet machine."""
    print(f"\n{stage} of {STAGES}: {words} (usually {usual})", flush=True)


def settings(task: Task, out: Path, overrides: Sequence[str] = ()) -> Config:
    """The package's settings of a task, with its place among the results."""
    place = [f"training.out={out / task.name}", "training.resume=true"]
    return load_config(HEADS / f"{task.name}.toml", [*place, *overrides])


def train(task: Task, config: Config, progress: bool = True) -> nn.Module:
    """The task's network, trained, or taken from the checkpoint of a run that was finished."""
    trainer = Trainer(config, progress=progress)
    total = config.training.steps
    begun = f"{config.training.batch_size} pairs a step"
    if trainer.step:
        begun = f"going on at step {trainer.step}, from the checkpoint in {config.training.out}"
    print(f"{task.title}: {total} steps, {begun}", flush=True)
    trainer.train()
    return trainer.network.eval()


def measured(case: Case, network: nn.Module, config: Config, folder: Path) -> Result:
    """Registers a held-out pair with every method; the network's result as it is in its files."""
    stem = folder / f"{case.moving}_to_{case.fixed}_slice{case.slice_index:02d}"
    similarity = str(config.objective.similarity)
    methods, ours = {}, torch.empty(0)
    for method, field, seconds in displacements(case, network, config.data.slices, similarity):
        if method == "network":
            field = ours = _through_files(case, field, stem)
        methods[method] = case.measure(field, seconds)
    return Result(case, methods, case_view(case, ours, methods))


def _through_files(case: Case, field: Tensor, stem: Path) -> Tensor:
    """Writes displacement and warped image, and returns the displacement as its file has it."""
    moving, fixed = case.images
    file = stem.with_name(f"{stem.name}_displacement.nii.gz")
    write_displacement(file, field, fixed)
    field, _ = read_displacement(file)
    warped = resample_to(moving, fixed, field)
    write_image(stem.with_name(f"{stem.name}_warped.nii.gz"), warped, fixed)
    return field


def conclude(
    results: list[Result], out: Path, seconds: float, configs: dict[str, Config]
) -> list[Target]:
    """Writes metrics.json and report.html, and prints the table of the means and the verdict."""
    directions = list(dict.fromkeys(result.case.direction for result in results))
    means = {
        direction: {
            method: mean([r.methods[method] for r in results if r.case.direction == direction])
            for method in METHODS
        }
        for direction in directions
    }
    folded = sum(result.methods["network"]["folded_percent"] != 0 for result in results)
    lines = targets(means, folded)
    facts = {
        "version": __version__,
        "torch": str(torch.__version__),
        "seconds": seconds,
        "cpus": os.cpu_count(),
        "settings": {name: config.to_dict() for name, config in configs.items()},
        "held_out_slices": list(HELD_OUT),
        "targets": [line._asdict() for line in lines],
        "means": means,
        "pairs": {str(result.case): result.methods for result in results},
    }
    with replacing(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    trainings = {task.title: configs[task.name].training for task in TASKS}
    write_demo_report(results, means, lines, out, trainings)
    mean_table = table({f"{name}, mean of the held-out pairs": means[name] for name in means})
    print(f"\n{mean_table.text()}\n")
    for line in lines:
        print(f"{'met    ' if line.met else 'NOT MET'}  {line.text}")
    print(f"\n{WHAT_IT_SHOWS} {seconds / 60:.1f} minutes.\nReport: {out / 'report.html'}")
    return lines
