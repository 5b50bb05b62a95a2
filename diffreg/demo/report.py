"""The page that the demo leaves: verdict, pictures, curves, table and what has to be known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffreg.data.geometry import display_orientation
from diffreg.demo.measures import HELD_OUT, Case, Measures, Target, mean, table
from diffreg.registration.provenance import in_words, provenance
from diffreg.report.first_screen import Said, fit_sentence
from diffreg.report.html import PairView, write_report
from diffreg.training.config import TrainingConfig
from diffreg.training.log import read_log

CREDITS = (
    "Images: Colin27 and MNI ICBM 152 (2009a), Copyright (C) 1993-2009 Louis Collins, McConnell "
    "Brain Imaging Centre, Montreal Neurological Institute, McGill University; taken from the "
    "packages mricron-data and nilearn. Their notices: diffreg/demo/heads/NOTICE.md.",
)
WHAT_IT_SHOWS = "Two heads: this shows the machinery, not accuracy."


@dataclass(frozen=True)
class Result:
    """A held-out pair: every method's figures, and the view of the network's registration."""

    case: Case
    methods: dict[str, Measures]
    view: PairView


def case_view(case: Case, field: Tensor, methods: dict[str, Measures]) -> PairView:
    """A pair with the displacement (1, 2, *S) that was found for it, ready to be drawn."""
    fixed = case.images[1]
    before, after, target, _ = case.prepared.compared(field)
    moving, still, warped = (image[0, 0].numpy() for image in (before, target, after))
    return PairView(
        str(case),
        moving,
        still,
        warped,
        field[0].numpy(),
        spacing=fixed.spacing,
        display=display_orientation(fixed.affine, fixed.kind),
        metrics=_before_and_after(methods),
    )


def write_demo_report(
    results: list[Result],
    means: dict[str, dict[str, Measures]],
    lines: list[Target],
    out: Path,
    trainings: dict[str, TrainingConfig],
) -> None:
    """Writes report.html.

    Args:
        results: of every held-out pair.
        means: direction -> method -> figures.
        lines: what the demo has to meet.
        out: the folder of the results.
        trainings: title -> settings of each training.
    """
    groups = {f"{name}, mean of the held-out pairs": methods for name, methods in means.items()}
    groups |= {str(result.case): result.methods for result in results}
    # One pair of each direction first, with all its panels.
    first = sorted(results, key=lambda result: result.case.slice_index != HELD_OUT[1])
    write_report(
        out / "report.html",
        "Two heads registered by networks that never saw these slices",
        _verdict(results, means, lines),
        [result.view for result in first],
        table(groups),
        _curves(trainings),
        [*_notes(trainings), *(f"{'Met' if met else 'NOT MET'}: {text}." for text, met in lines)],
        credits=CREDITS,
        in_full=len(means),
        fit=_fit(means),
        origin=in_words(provenance()),
    )


def _verdict(
    results: list[Result], means: dict[str, dict[str, Measures]], lines: list[Target]
) -> list[tuple[str, Any]]:
    """The first screen: means before and after, the smallest determinant, the time."""
    same, cross = _same_contrast(means), _cross_contrast(means)
    ours = mean([result.methods["network"] for result in results])
    met = sum(line.met for line in lines)
    return [
        ("T1 to T1: how much the images agree (NCC)", _change(same, "ncc")),
        (
            "T1 to T1: what is left of their squared difference (relative SSD)",
            _change(same, "relative_ssd"),
        ),
        (
            "T1 to grey matter: how much one image tells of the other (mutual information, nats)",
            _change(cross, "mutual_information"),
        ),
        ("T1 to grey matter: how much the unseen T1 agrees (NCC)", _change(cross, "unseen_t1_ncc")),
        ("how much the brains overlap (Dice)", _change(list(means.values()), "dice")),
        ("time a pair", f"{ours['milliseconds']:.1f} ms"),
        ("lines of the demo met", f"{met} of {len(lines)}"),
    ]


def _same_contrast(means: dict[str, dict[str, Measures]]) -> list[dict[str, Measures]]:
    return [m for m in means.values() if "relative_ssd" in m["network"]]


def _cross_contrast(means: dict[str, dict[str, Measures]]) -> list[dict[str, Measures]]:
    return [m for m in means.values() if "unseen_t1_ncc" in m["network"]]


def _change(methods: list[dict[str, Measures]], name: str) -> tuple[float, float]:
    """A figure before and after the network, the mean over directions."""
    before, after = (mean([m[k] for m in methods])[name] for k in ("identity", "network"))
    return before, after


def _fit(means: dict[str, dict[str, Measures]]) -> Said:
    """By the overlap of the brains, which no training saw."""
    before, after = _change(list(means.values()), "dice")
    return fit_sentence("mean Dice", before, after, "The brains overlap")


def _before_and_after(methods: dict[str, Measures]) -> dict[str, Any]:
    """What stands above a pair's panels."""
    names = {
        "ncc": "NCC",
        "relative_ssd": "relative SSD",
        "mutual_information": "MI",
        "unseen_t1_ncc": "NCC with the unseen T1",
        "dice": "brain Dice",
    }
    before, after = methods["identity"], methods["network"]
    changes = {text: (before[name], after[name]) for name, text in names.items() if name in after}
    return {**changes, "time": f"{after['milliseconds']:.1f} ms"}


def _curves(trainings: dict[str, TrainingConfig]) -> dict[str, tuple[list[int], list[float]]]:
    """Objective, similarity and smallest determinant over the steps."""
    curves = {}
    for name, field in (
        ("objective", "total"),
        ("similarity", "similarity"),
        ("smallest determinant in the batch", "smallest_determinant"),
    ):
        for title, training in trainings.items():
            log = read_log(Path(training.out) / "log.csv")
            steps = [entry.step for entry in log]
            curves[f"{name}/{title}"] = (steps, [getattr(entry, field) for entry in log])
    return curves


def _notes(trainings: dict[str, TrainingConfig]) -> list[str]:
    """What the reader has to know about the figures."""
    steps = [f"{title} {training.steps} steps" for title, training in trainings.items()]
    training = next(iter(trainings.values()))
    return [
        WHAT_IT_SHOWS,
        f"Trained: LU-net, {', '.join(steps)} of {training.batch_size} pairs, seed "
        f"{training.seed}, ncc and pls, weights (60; 1, 30, 3).",
        f"Slices {', '.join(map(str, HELD_OUT))} were held out, and the slice above each left out "
        "of the training. Learning rate, warps and steps were set by hand in a few trials that "
        "looked at the figures of these slices.",
        "Identity: no displacement. Mean training field: the mean of the network's displacements "
        "over the training slices. Neighbour slice's field: the network's displacement for the "
        "slice above, applied here. Variational: the same objective, each pair optimised.",
        "The network that registers T1 to grey matter never saw a T1 image of the fixed head; the "
        "NCC with that image, inside its brain, says whether the anatomy fits. The brain masks of "
        "Dice are the T1 images where they are not 0.",
    ]
