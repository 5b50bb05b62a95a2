"""The networks of study 5: the weights' search, and what is measured of each network."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cached_property

import torch
from drawing import drawing_pairs
from images import Pairs, bent_by_waves, brain_slices, mr_and_simulated_ct
from measuring import Row, chosen_on_others, measured, over_patients
from pages import Study
from predicting import predict, refined
from recipes import Recipe
from torch import Tensor
from training import Run, fit, kept_rows, rows_of

from diffreg.losses import Objective
from diffreg.registration import register_variational

MEASURES = ("pls", "smooth_pls", "ngf", "mi", "ncc")
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)
ENERGIES = (1, 30, 3)
SPLIT = "SCD0000301"  # where there is one split: SN, curves, the overlays
ITERATIONS = 40  # on each of three levels
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

    def best_directly(self) -> str:
        """The measure with the smallest error of all, optimised directly."""
        search = self.search()
        errors = {key: over_patients(rows, "end_point_error")[0] for key, rows in search.items()}
        return min(errors, key=lambda key: errors[key])[0]

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

    def objective(self, measure: str, patient: str) -> Objective:
        """The measure with the weight that was best for the other patients."""
        return Objective(measure, (self.weights[measure][patient], *ENERGIES))

    def rows(self, run: Run, patient: str) -> list[Row]:
        """What is measured of a network on the patient that it has not seen."""
        own = self.pairs.of(patient)
        return rows_of(run, "held out", lambda r: measured(own, predict(r, own), False))


class Trained:
    """The networks so far, and what was measured of them, by title.

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

    def add(self, measure: str, patient: str) -> None:
        """The network of a measure."""
        self._keep(first(measure), patient, self.setup.run(measure, patient))

    def go_on(self, measure: str, direct: str, patient: str) -> None:
        """That of the best measure, longer; from there by the other, and by its own to compare."""
        start = self.setup.run(measure, patient, longer=True)
        self._keep(longer(measure), patient, start)
        for again in dict.fromkeys((measure, direct)):
            run = self.setup.run(again, patient, longer=True, start=start)
            self._keep(then(measure, again), patient, run)

    def best(self) -> str:
        """The measure whose network has the smallest error."""
        errors = {
            measure: over_patients(self.rows[first(measure)], "end_point_error_guaranteed")[0]
            for measure in self.setup.measures
        }
        return min(errors, key=lambda measure: errors[measure])

    def refined(self, title: str, measure: str, steps: int) -> list[Row]:
        """What variational steps from a network's field give, in every patient."""
        found = []
        for patient in self.setup.patients:
            own = self.setup.pairs.of(patient)
            objective = self.setup.objective(measure, patient)
            found += rows_of(
                self.runs[title, patient],
                f"refined {measure} {objective.weights.similarity:g}",
                lambda r, own=own, o=objective: measured(own, refined(r, own, o, steps), False),
            )
        return found

    def _keep(self, title: str, patient: str, run: Run) -> None:
        self.runs[title, patient] = run
        self.rows[title] += self.setup.rows(run, patient)
        if self.waves is not None:
            own = self.waves.of(patient)
            self.on_waves[title] += rows_of(
                run, f"waves {NEW_FAMILY}", lambda r: measured(own, predict(r, own), False)
            )
        print(f"{title} without {patient}: {run.seconds:.0f} s on {run.device}", flush=True)


def first(measure: str) -> str:
    """Title of the network of a measure."""
    return f"LU-net, {measure}"


def longer(measure: str) -> str:
    """Title of that trained longer."""
    return f"{first(measure)}, longer"


def then(measure: str, again: str) -> str:
    """Title of that gone on from by another measure."""
    return f"{longer(measure)}, then {again}"
