"""The networks of study 3: recipes, images, and what is measured of each network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from drawing import drawing
from images import Frames, Pairs, brain_slices, cardiac
from measuring import Row, chosen_on_others, measured, of_seed
from pages import Study
from predicting import predict, refined
from recipes import Recipe
from training import Run, fit, rows_of

from diffreg.losses import Objective

SPLIT = "SCD0000301"  # the patient left out where there is one split
OURS = "LU-net"
TUNED = (OURS, "VoxelMorph")
STRENGTHS = (1, 0.3, 3)  # that their energies are multiplied by
SEEDS = (0, 1, 2)  # of what has its energies as they are, but of SN


class Job(NamedTuple):
    """Which network: its recipe, the patient left out, the energies' strength, the seed."""

    name: str
    patient: str
    strength: float = 1
    seed: int = 0

    @property
    def title(self) -> str:
        return (
            f"{self.name}, energies x {self.strength:g}, seed {self.seed}, without {self.patient}"
        )


def jobs(names: Sequence[str], images: Images, seeds: Sequence[int] = SEEDS) -> list[Job]:
    """All networks of the study."""
    return [
        Job(name, patient, strength, seed)
        for name in names
        for strength in (STRENGTHS if name in TUNED else STRENGTHS[:1])
        for seed in (seeds if strength == 1 and name != "SN" else seeds[:1])
        for patient in ([images.split] if name == "SN" else images.patients)
    ]


def recipes(images: str, steps: int) -> dict[str, Recipe]:
    """The networks, by name."""
    base = Recipe(images, steps=steps)
    return {
        OURS: base,
        # Its own objective: local correlation and the diffusion of the field, which is E1 / 4.
        "VoxelMorph": replace(
            base, model="voxelmorph", similarity={"lncc": 1.0}, weights=(60, 15, 0, 0)
        ),
        "LU-net + integration, E1 + E2": replace(base, integrate=True, weights=(60, 1, 30, 0)),
        "SN": replace(base, model="sn", learning_rate=1e-3),
    }


@dataclass
class Images:
    """What is trained on and tested on, and how long.

    Args:
        frames, pairs: of all patients.
        patients: each is left out once.
        split: the one left out for SN.
        name: of the images, in a recipe.
        steps: of every network.
        judged_by: the measure that a strength is chosen by; more is better.
    """

    frames: Frames
    pairs: Pairs
    patients: Sequence[str]
    split: str
    name: str
    steps: int
    judged_by: str

    def run(self, study: Study, name: str, patient: str, strength: float = 1, seed: int = 0) -> Run:
        """The network that has not seen a patient."""
        recipe = recipes(f"{self.name} without {patient}", self.steps)[name]
        similarity, *energies = recipe.weights
        weights = (similarity, *(strength * energy for energy in energies))
        recipe = replace(recipe, weights=weights, seed=seed)
        frames = self.frames.without(patient)
        test = self.pairs.of(patient)
        return fit(recipe, lambda device: drawing(frames, recipe, device), study.place, test)


def images_of(study: Study) -> Images:
    """The hearts, or shipped slices whose patients are thirds of the brain."""
    if not study.quick:
        _, frames, pairs = cardiac(study.data)
        patients = tuple(dict.fromkeys(pairs.patients))
        return Images(frames, pairs, patients, SPLIT, "160 cardiac images", 4000, "dice_guaranteed")
    frames, pairs = brain_slices()
    names = ["lower", "upper"]
    label = {f"slice {k}": names[k >= 10] for k in range(21)}
    frames = Frames(frames.images, frames.series, tuple(label[p] for p in frames.patients))
    keep = [8, 12]
    count = len(frames.images) // 2
    two = pairs.only(keep)
    # T1 of a person to T1 of the template.
    moving = frames.images[:count][keep][:, None]
    two = replace(
        two,
        moving=moving,
        patients=tuple(label[p] for p in two.patients),
        truth=None,
        moving_label=None,
        fixed_label=None,
    )
    return Images(frames, two, names, "lower", "shipped slices", 30, "ncc_guaranteed")


class Trained:
    """The networks so far, and what was measured of them.

    Args:
        study, images: of it.
    """

    def __init__(self, study: Study, images: Images) -> None:
        self.study, self.images = study, images
        self.runs: dict[Job, Run] = {}
        self.rows: dict[tuple[str, float], list[Row]] = defaultdict(list)  # (name, strength)

    def add(self, job: Job) -> None:
        """One network, measured on the patient that it has not seen."""
        run = self.runs[job] = self.images.run(self.study, *job)
        own = self.images.pairs.of(job.patient)
        rows = rows_of(run, "held out", lambda r: measured(own, predict(r, own)))
        self.rows[job.name, job.strength] += [row | {"seed": job.seed} for row in rows]
        print(f"{job.title}: {run.seconds:.0f} s on {run.device}", flush=True)

    def refined(self, steps: int) -> list[Row]:
        """Ours, each gone on from by variational steps."""
        found = []
        for job, run in self.runs.items():
            if (job.name, job.strength) == (OURS, 1):
                own = self.images.pairs.of(job.patient)
                objective = Objective(run.recipe.similarity, run.recipe.weights)
                rows = rows_of(
                    run,
                    f"refined {steps}",
                    lambda r, own=own, o=objective: measured(own, refined(r, own, o, steps)),
                )
                found += [row | {"seed": job.seed} for row in rows]
        return found

    def tuned(self, name: str) -> tuple[dict[str, float], list[Row]]:
        """The strength that was best for the other patients, and its rows, of the first seed."""
        search = {strength: of_seed(self.rows[name, strength], SEEDS[0]) for strength in STRENGTHS}
        patients, judged_by = self.images.patients, self.images.judged_by
        chosen = chosen_on_others(search, patients, judged_by, sign=1)
        return chosen, [
            row for s, found in search.items() for row in found if chosen[row["patient"]] == s
        ]

    def of_split(self) -> dict[str, Run]:
        """name -> the run with its energies as they are, seed 0, on the one split."""
        return {
            job.name: run
            for job, run in self.runs.items()
            if job == Job(job.name, self.images.split)
        }
