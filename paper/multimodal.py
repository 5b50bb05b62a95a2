"""Study 5: MR to simulated CT, 120 pairs.

    python paper/multimodal.py --data DIR [--device cuda]
    python paper/multimodal.py --quick

First a weight for each measure (pls, its variants, mi, ncc), by direct optimisation; then a network
for each, trained without one patient at a time with the weight that was best for the others; then
the best of them once more, longer, and on from there by the measure that did best directly.
The truth is known: the error inside the body is what counts. CT is always simulated from the MR.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import Pairs
from measuring import (
    Row,
    difference,
    measured,
    milliseconds,
    milliseconds_in_turn,
    over_patients,
    patient_means,
    share_of_before,
)
from multimodal_networks import (
    NEW_FAMILY,
    Search,
    Setup,
    Trained,
    first,
    longer,
    optimised,
    then,
)
from pages import Study, changed, ranged
from pictures import curves, overlays
from predicting import moves_itself, predict, refined
from recipes import LAST_RATE
from training import LONGEST, Run

from diffreg.data.synthetic import random_velocity
from diffreg.losses import usual_objective
from diffreg.ops import warp
from diffreg.registration import register_variational
from diffreg.training.checkpoint import write_checkpoint
from diffreg.training.config import Config

STAGES = ("search", "networks", "longer")
REFINEMENT = 20  # steps from a network's field


def main() -> None:
    study = Study("multimodal", __doc__.partition("\n")[0], stages=STAGES)
    setup, own_part = Setup(study), slice(study.part, None, study.parts)
    if study.stage == "search":
        setup.search(study.part, study.parts)
        return
    trained = Trained(setup)
    jobs = [(measure, patient) for measure in setup.measures for patient in setup.patients]
    for measure, patient in jobs[own_part] if study.stage == "networks" else jobs:
        trained.add(measure, patient)
    if study.stage == "networks":
        return
    measure, direct = trained.best(), setup.best_directly()
    for patient in setup.patients[own_part]:
        trained.go_on(measure, direct, patient)
    if not study.stage:
        report(study, setup, trained, measure, direct)


def report(study: Study, setup: Setup, trained: Trained, measure: str, direct: str) -> None:
    """Tables, figures, and the network that ships."""
    pairs, split = setup.pairs, setup.split
    best = then(measure, direct)
    refined_title = f"{best} + {REFINEMENT} variational steps"
    rows = {
        **_before_and_truth(pairs),
        **trained.rows,
        refined_title: trained.refined(best, direct, REFINEMENT),
        **_directly(setup),
    }
    others = dict(trained.on_waves)
    if trained.waves is not None:
        others = {"before": _before_and_truth(trained.waves)["before"], **others}
    own, one = pairs.of(split), trained.runs[best, split]
    times = timed(setup, trained, best, refined_title, direct)
    tables(study, rows, times, best)
    other_fields(study, others)
    searched(study, setup.search())
    figures(study, trained, measure, direct)
    write_network(one, study.place.folder / "lunet-mr-ct.pt")
    study.write_json(
        {
            "rows": rows,
            "other_fields": {
                name: patient_means(found, "end_point_error_guaranteed")
                for name, found in others.items()
            },
            "weights": setup.weights,
            "longer": longer(measure),
            "control": then(measure, measure),
            "best": best,
            "refined": refined_title,
            "directly": list(dict.fromkeys(f"variational, {name}" for name in ("pls", direct))),
            "split": split,
            "new_family": NEW_FAMILY,
            "steps": setup.steps,
            "milliseconds": times,
            "self_registration": against_itself(own, setup.measures),
            "self_registration_of_network": moves_itself(one, own.fixed),
            "recipes": {", ".join(k): vars(r.recipe) for k, r in trained.runs.items()},
            "training_seconds": {
                ", ".join(k): [r.seconds, r.device] for k, r in trained.runs.items()
            },
        }
    )


def timed(
    setup: Setup, trained: Trained, best: str, refined_title: str, direct: str
) -> dict[str, float]:
    """Milliseconds a pair, by title."""
    split = setup.split
    one = setup.pairs.of(split).only([0])
    works = {
        title: lambda run=run: predict(run, one)
        for (title, patient), run in trained.runs.items()
        if patient == split
    }
    times = {title: median for title, (median, *_) in milliseconds_in_turn(works).items()}
    run, objective = trained.runs[best, split], setup.objective(direct, split)
    times[refined_title] = milliseconds(lambda: refined(run, one, objective, REFINEMENT), 5)
    for measure in setup.measures:
        factor = setup.weights[measure][split]
        times[f"variational, {measure}"] = milliseconds(
            lambda m=measure, f=factor: optimised(one, m, f), 3
        )
    return times


def write_network(run: Run, path: Path) -> None:
    """The network as `register --checkpoint` takes it; what a config has no word for stays out."""
    recipe = run.recipe
    rate = recipe.learning_rate
    config = Config.from_dict(
        {
            "model": {"name": recipe.model},
            "objective": {"similarity": recipe.similarity, "weights": list(recipe.weights)},
            "augmentation": {"crop": [recipe.crop] * 2, "flip_axes": [0, 1]},
            "optimizer": {
                "learning_rate": rate,
                "final_learning_rate": rate * LAST_RATE,
                "clip_norm": LONGEST,
            },
            "training": {
                "steps": recipe.steps,
                "batch_size": recipe.batch,
                "seed": recipe.seed,
                "device": "cuda" if "NVIDIA" in run.device else "cpu",
            },
        }
    )
    weights = {name: value.contiguous() for name, value in run.network.state_dict().items()}
    write_checkpoint(path, {"config": config.to_dict(), "weights": weights})


def _before_and_truth(pairs: Pairs) -> dict[str, list[Row]]:
    assert pairs.truth is not None
    return {
        "before": measured(pairs, torch.zeros_like(pairs.truth), one_contrast=False),
        "at the true field": measured(pairs, pairs.truth, one_contrast=False),
    }


def _directly(setup: Setup) -> dict[str, list[Row]]:
    """Without a network: each patient by the weight that was best for the others."""
    search = setup.search()
    return {
        f"variational, {measure}": [
            row
            for patient, factor in of_patient.items()
            for row in search[measure, factor]
            if row["patient"] == patient
        ]
        for measure, of_patient in setup.weights.items()
    }


def tables(study: Study, rows: dict[str, list[Row]], times: dict[str, float], best: str) -> None:
    """Errors of every method."""
    lines = []
    for name, found in rows.items():
        part = share_of_before(found, rows["before"], "end_point_error_guaranteed")
        less = difference(rows[best], found, "end_point_error_guaranteed")
        lines.append(
            [
                name,
                f"{len(found)} of {len({r['patient'] for r in found})}",
                ranged(over_patients(found, "end_point_error"), 2),
                ranged(over_patients(found, "end_point_error_guaranteed"), 2),
                f"{100 * part:.0f} %",
                changed(less, 2) if name != best else "",
                ranged(over_patients(found, "dice")),
                ranged(over_patients(found, "dice_guaranteed")),
                f"{over_patients(found, 'mi')[0]:.3f}",
                f"{over_patients(found, 'folded_percent')[0]:.3f}",
                f"{min(r['min_determinant'] for r in found):.2f}",
                f"{times[name]:.0f}" if name in times else "-",
            ]
        )
    titles = (
        "method",
        "pairs of patients",
        "end-point error in the body, pixels",
        "guaranteed",
        "of that before",
        f"{best} minus it",
        "cavity Dice",
        "guaranteed",
        "MI, nats",
        "folded cells, %",
        "smallest determinant",
        "ms a pair, two threads",
    )
    study.write_table("", titles, lines)


def other_fields(study: Study, others: dict[str, list[Row]]) -> None:
    """Errors on fields of another family."""
    lines = [
        [
            name,
            ranged(over_patients(found, "end_point_error"), 2),
            ranged(over_patients(found, "end_point_error_guaranteed"), 2),
            f"{100 * share_of_before(found, others['before'], 'end_point_error_guaranteed'):.0f} %",
            f"{over_patients(found, 'folded_percent')[0]:.3f}",
        ]
        for name, found in others.items()
    ]
    titles = (
        "method",
        "end-point error in the body, pixels",
        "guaranteed",
        "of that before",
        "folded cells, %",
    )
    if lines:
        study.write_table("_other_fields", titles, lines)


def searched(study: Study, search: Search) -> None:
    """The error of every measure and weight, optimised directly."""
    factors = list(dict.fromkeys(factor for _, factor in search))
    lines = []
    for measure in dict.fromkeys(measure for measure, _ in search):
        cells = []
        for factor in factors:
            rows = search[measure, factor]
            error = over_patients(rows, "end_point_error")[0]
            cells.append(f"{error:.2f} ({over_patients(rows, 'mi')[0]:.2f})")
        lines.append([measure, *cells])
    titles = ("measure", *(f"({factor:g}; 1, 30, 3)" for factor in factors))
    study.write_table("_weights", titles, lines)


def figures(study: Study, trained: Trained, measure: str, direct: str) -> None:
    """Losses, of both measures, and overlays of three pairs."""
    split, best = trained.setup.split, then(measure, direct)
    for ending, titles in (
        ("", (first(measure), longer(measure), then(measure, measure))),
        ("_then", (first(direct), best)),
    ):
        shown = {title: trained.runs[title, split].curve for title in titles}
        study.write(f"multimodal_curves{ending}.png", curves(shown, f"trained without {split}"))
    own = trained.setup.pairs.of(split)
    places = sorted({len(own) // 4, len(own) // 2, 3 * len(own) // 4})
    picture(study, own.only(places), trained.runs[best, split])


def picture(study: Study, pairs: Pairs, run: Run) -> None:
    """Fused overlays before and after."""
    rows = []
    for k in range(len(pairs)):
        pair = pairs.only([k])
        field = predict(run, pair)
        assert pair.truth is not None
        rows.append(
            (
                pair.names[0],
                [
                    ("before", pair.moving, pair.fixed),
                    ("after", warp(pair.moving, field), pair.fixed),
                    ("at the true field", warp(pair.moving, pair.truth), pair.fixed),
                ],
            )
        )
    study.write("multimodal.png", overlays(rows))


def against_itself(own: Pairs, measures: Sequence[str]) -> dict[str, Any]:
    """How far `register --similarity MEASURE` leaves an image from itself, from some 0.3 pixels.

    The identity is a stationary point of most: from there nothing would be seen.
    """
    found: dict[str, Any] = {}
    for measure in measures:
        objective = usual_objective(measure)
        found[measure] = {}
        for kind, images in (("MR", own.fixed), ("simulated CT", own.moving)):
            few = images[:: max(len(images) // 3, 1)].split(1)
            random = np.random.default_rng([7])
            start = random_velocity(tuple(images.shape[2:]), 0.1, 8.0, random)
            fields = [register_variational(x, x, objective, start=start) for x in few]
            found[measure][kind] = max(float(field.abs().max()) for field in fields)
    return found


if __name__ == "__main__":
    main()
