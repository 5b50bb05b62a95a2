"""Study 5: MR to simulated CT, 120 pairs.

    python bench/paper/multimodal.py --data DIR [--device cuda]
    python bench/paper/multimodal.py --quick

First a weight for each measure (pls, its variants, mi, ncc), by direct optimisation; then a network
for each, trained without one patient at a time with the weight that was best for the others; then
the best of them once more, longer, and on from there by the measure that did best directly.
The truth is known: the error inside the body is what counts. CT is always simulated from the MR.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import Pairs, bent_by_waves, brain_slices, mr_and_simulated_ct
from measuring import Row, chosen_on_others, difference, measured, milliseconds, over_patients
from pages import Study, changed, ranged
from pictures import curves, overlays
from torch import Tensor
from training import Recipe, Run, drawing_pairs, fit, kept_rows, moves_itself, predict, rows_of

from diffreg.checkpoint import write_checkpoint
from diffreg.config import Config
from diffreg.data.synthetic import random_velocity
from diffreg.losses import Objective, usual_objective
from diffreg.ops import warp
from diffreg.variational import register_variational

STAGES = ("search", "networks", "longer")
MEASURES = ("pls", "smooth_pls", "ngf", "mi", "ncc")
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)
ENERGIES = (1, 30, 3)
SPLIT = "SCD0000301"  # where there is one split: SN, curves, the overlays
ITERATIONS = 40  # on each of three levels
REFINEMENT = 20  # steps from a network's field
Search = dict[tuple[str, float], list[Row]]  # (measure, weight) -> rows
# Fields of the row that no network was trained on: plane waves.
NEW_FAMILY = {"amplitude": 2.5, "wavelength": 50.0}


def optimised(pairs: Pairs, measure: str, factor: float) -> Tensor:
    """The displacement of every pair, optimised directly."""
    objective = Objective(measure, (factor, *ENERGIES))
    return torch.cat(
        [
            register_variational(pair.moving, pair.fixed, objective, iterations=ITERATIONS)
            for pair in (pairs.only([k]) for k in range(len(pairs)))
        ]
    )


def optimised_rows(study: Study, name: str, pairs: Pairs, measure: str, factor: float) -> list[Row]:
    """What comes of a measure and weight; read where it was measured before."""
    file = f"{name} optimised {measure} {factor:g}.json".replace(" ", "_")
    return kept_rows(
        study.place.folder / file,
        lambda: measured(pairs, optimised(pairs, measure, factor), one_contrast=False),
    )


class Setup:
    """The pairs, the search for weights, and the networks.

    Args:
        study: whose options say which.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        if study.quick:
            _, pairs = brain_slices()
            pairs = pairs.only([8, 9, 11, 12])
            self.pairs = replace(pairs, patients=("lower", "lower", "upper", "upper"))
            self.name, every, self.steps, self.batch, self.crop = "shipped slices", 1, 20, 4, 96
            self.measures, self.factors, self.split = ("pls", "mi"), (20.0, 200.0), "lower"
        else:
            assert study.data is not None
            self.pairs = mr_and_simulated_ct(study.data)
            self.name, every, self.steps, self.batch = "MR and simulated CT", 3, 2000, 8
            self.crop = 128
            self.measures, self.factors, self.split = MEASURES, FACTORS, SPLIT
        self.patients = tuple(dict.fromkeys(self.pairs.patients))
        self.few = self.pairs.only(list(range(0, len(self.pairs), every)))

    def search(self, part: int = 0, parts: int = 1) -> Search:
        """(measure, weight) -> rows, of every one or of every `parts`-th."""
        grid = [(measure, factor) for measure in self.measures for factor in self.factors]
        return {
            (measure, factor): optimised_rows(self.study, self.name, self.few, measure, factor)
            for measure, factor in grid[part::parts]
        }

    @cached_property
    def weights(self) -> dict[str, dict[str, float]]:
        """measure -> patient -> weight."""
        search = self.search()
        return {
            measure: chosen_on_others(
                {factor: rows for (name, factor), rows in search.items() if name == measure},
                self.patients,
                "end_point_error",
                sign=-1,
            )
            for measure in self.measures
        }

    def run(
        self,
        measure: str,
        patient: str,
        model: str = "lunet",
        longer: bool = False,
        start: Run | None = None,
    ) -> Run:
        """The network that has not seen a patient.

        Args:
            measure, patient, model: of it.
            longer: whether for twice the steps, and its moving images bent again.
            start: the run that it goes on from.
        """
        recipe = Recipe(
            f"{self.name} without {patient}",
            model=model,
            similarity={measure: 1.0},
            weights=(self.weights[measure][patient], *ENERGIES),
            bent=2.0 if longer else 0.0,
            steps=self.steps * (2 if longer else 1),
            batch=self.batch,
            crop=self.crop,
            learning_rate=2e-3 if model == "lunet" else 1e-3,
            start=start.recipe.key if start else "",
        )
        train, test = self.pairs.without(patient), self.pairs.of(patient)
        return fit(
            recipe, lambda device: drawing_pairs(train, recipe, device), self.study.place, test
        )

    def rows(self, run: Run, patient: str) -> list[Row]:
        """What is measured of a network on the patient that it has not seen."""
        own = self.pairs.of(patient)
        return rows_of(run, "held out", lambda r: measured(own, predict(r, own), False))


class Networks:
    """What has been trained, and what was measured of it, by title.

    Args:
        setup: of the study.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.runs: dict[tuple[str, str], Run] = {}  # (title, patient)
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.on_waves: dict[str, list[Row]] = defaultdict(list)
        quick = setup.study.quick
        self.waves = None if quick else bent_by_waves(setup.pairs, **NEW_FAMILY, seed=5)

    def train(self, title: str, measure: str, patient: str, **how: Any) -> Run:
        """One network, measured on the patient that it has not seen."""
        run = self.runs[title, patient] = self.setup.run(measure, patient, **how)
        self.rows[title] += self.setup.rows(run, patient)
        if self.waves is not None:
            own = self.waves.of(patient)
            self.on_waves[title] += rows_of(
                run, f"waves {NEW_FAMILY}", lambda r: measured(own, predict(r, own), False)
            )
        print(f"{title} without {patient}: {run.seconds:.0f} s on {run.device}", flush=True)
        return run

    def best(self) -> str:
        """The title with the smallest error."""
        return min(
            self.rows, key=lambda t: over_patients(self.rows[t], "end_point_error_guaranteed")[0]
        )


def main() -> None:
    study = Study("multimodal", __doc__.partition("\n")[0], stages=STAGES)
    setup, own_part = Setup(study), slice(study.part, None, study.parts)
    if study.stage == "search":
        setup.search(study.part, study.parts)
        return
    networks = Networks(setup)
    jobs = [(measure, patient) for measure in setup.measures for patient in setup.patients]
    for measure, patient in jobs[own_part] if study.stage == "networks" else jobs:
        networks.train(f"LU-net, {measure}", measure, patient)
    if study.stage == "networks":
        return
    search = setup.search()
    direct, _ = min(search, key=lambda key: over_patients(search[key], "end_point_error")[0])
    longer = f"{networks.best()}, longer"
    best = f"{longer}, then {direct}"
    for patient in setup.patients[own_part]:
        start = networks.train(longer, longer.split(", ")[1], patient, longer=True)
        networks.train(best, direct, patient, longer=True, start=start)
    if study.stage:
        return
    report(study, setup, networks, search, longer, best)


def report(
    study: Study, setup: Setup, networks: Networks, search: Search, longer: str, best: str
) -> None:
    """Tables, figures, and the network that ships."""
    pairs, split, runs = setup.pairs, setup.split, networks.runs
    measure, direct = longer.split(", ")[1], best.rpartition(" ")[2]
    rows, others = dict(networks.rows), dict(networks.on_waves)
    refined_title = f"{best} + {REFINEMENT} variational steps"
    rows[refined_title] = []
    for patient in setup.patients:
        objective = Objective(direct, (setup.weights[direct][patient], *ENERGIES))
        rows[refined_title] += refined(setup, runs[best, patient], patient, objective)
    rows = {**_before_and_truth(pairs), **rows, **_directly(search, setup.weights)}
    if networks.waves is not None:
        others = {"before": _before_and_truth(networks.waves)["before"], **others}
    tables(study, rows, others, best)
    searched(study, search)
    one = runs[best, split]
    shown = {t: runs[t, split].curve for t in (f"LU-net, {measure}", longer)}
    study.write("multimodal_curves.png", curves(shown, f"trained without {split}"))
    write_network(one, study.place.folder / "lunet-mr-ct.pt")
    own = pairs.of(split)
    places = sorted({len(own) // 4, len(own) // 2, 3 * len(own) // 4})
    picture(study, own.only(places), one)
    study.write_json(
        {
            "rows": rows,
            "other_fields": others,
            "weights": setup.weights,
            "longer": longer,
            "best": best,
            "refined": refined_title,
            "directly": list(dict.fromkeys(f"variational, {name}" for name in ("pls", direct))),
            "split": split,
            "new_family": NEW_FAMILY,
            "steps": setup.steps,
            "milliseconds": milliseconds(lambda: predict(one, own.only([0]))),
            "self_registration": against_itself(own, setup.measures),
            "self_registration_of_network": moves_itself(one, own.fixed),
            "recipes": {", ".join(k): vars(r.recipe) for k, r in runs.items()},
            "training_seconds": {", ".join(k): [r.seconds, r.device] for k, r in runs.items()},
        }
    )


def write_network(run: Run, path: Path) -> None:
    """The network as `register --checkpoint` takes it."""
    recipe = run.recipe
    config = Config.from_dict(
        {
            "model": {"name": recipe.model},
            "objective": {"similarity": recipe.similarity, "weights": list(recipe.weights)},
            "training": {"steps": recipe.steps, "batch_size": recipe.batch},
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


def _directly(search, weights) -> dict[str, list[Row]]:
    """Without a network: each patient by the weight that was best for the others."""
    found = {}
    for measure, of_patient in weights.items():
        found[f"variational, {measure}"] = [
            row
            for patient, factor in of_patient.items()
            for row in search[measure, factor]
            if row["patient"] == patient
        ]
    return found


def tables(
    study: Study, rows: dict[str, list[Row]], others: dict[str, list[Row]], best: str
) -> None:
    """Errors of every method, and on fields of another family."""
    lines = []
    for name, found in rows.items():
        error = over_patients(found, "end_point_error")
        guaranteed = over_patients(found, "end_point_error_guaranteed")
        before = [r for r in rows["before"] if r["pair"] in {f["pair"] for f in found}]
        part = guaranteed[0] / over_patients(before, "end_point_error")[0]
        lines.append(
            [
                name,
                f"{len(found)} of {len({r['patient'] for r in found})}",
                ranged(error, 2),
                ranged(guaranteed, 2),
                f"{100 * part:.0f} %",
                changed(difference(rows[best], found, "end_point_error_guaranteed"), 2)
                if name != best
                else "",
                ranged(over_patients(found, "dice")),
                ranged(over_patients(found, "dice_guaranteed")),
                f"{over_patients(found, 'mi')[0]:.3f}",
                f"{over_patients(found, 'folded_percent')[0]:.3f}",
                f"{min(r['min_determinant'] for r in found):.2f}",
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
    )
    study.write_table("", titles, lines)
    if others:
        lines = [
            [
                name,
                ranged(over_patients(found, "end_point_error"), 2),
                ranged(over_patients(found, "end_point_error_guaranteed"), 2),
                f"{over_patients(found, 'folded_percent')[0]:.3f}",
            ]
            for name, found in others.items()
        ]
        study.write_table(
            "_other_fields",
            ("method", "end-point error in the body, pixels", "guaranteed", "folded cells, %"),
            lines,
        )


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


def refined(setup: Setup, run: Run, patient: str, objective: Objective) -> list[Row]:
    """What variational steps from the network's field give."""
    own = setup.pairs.of(patient)

    def fields(trained: Run) -> Tensor:
        found = []
        for k, start in enumerate(predict(trained, own).split(1)):
            pair = own.only([k])
            found.append(
                register_variational(
                    pair.moving, pair.fixed, objective, iterations=REFINEMENT, start=start
                )
            )
        return torch.cat(found)

    measure = "+".join(objective.similarity)
    name = f"refined {measure} {objective.weights.similarity:g}"
    return rows_of(run, name, lambda r: measured(own, fields(r), False))


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
