"""Study 3: mono-modal registration of 160 cardiac MR images.

    python bench/paper/monomodal.py --data DIR [--device cuda]
    python bench/paper/monomodal.py --quick

LU-net trained without one patient at a time, SN on one split, against registration without learning
(ours, ANTs SyN, demons: tuned, bench/variational) and learned peers on the same images and steps:
VoxelMorph, and LU-net with an integration layer and without the determinant term. LU-net and
VoxelMorph as they come, and with energies as strong as was best for the other patients.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from images import ROOT, Frames, Pairs, brain_slices, cardiac
from measuring import (
    Row,
    chosen_on_others,
    difference,
    measured,
    milliseconds,
    over_patients,
)
from pages import Study, changed, ranged
from pictures import curves, four_rows
from torch import Tensor
from training import Recipe, Run, drawing, fit, kept_rows, moves_itself, predict, rows_of

from diffreg.losses import Objective
from diffreg.variational import register_variational

SPLIT = "SCD0000301"  # the patient left out where there is one split
REFINEMENTS = (5, 20)
OURS = "LU-net"
TUNED = (OURS, "VoxelMorph")
STRENGTHS = (1, 0.3, 3)  # that their energies are multiplied by
SEEDS = (0, 1, 2)  # of what has its energies as they are, but of SN


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

    def run(
        self, study: Study, method: str, patient: str, strength: float = 1, seed: int = 0
    ) -> Run:
        """The network that has not seen a patient."""
        recipe = recipes(f"{self.name} without {patient}", self.steps)[method]
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


Method = Callable[[Pairs], Tensor]


def without_learning(quick: bool) -> dict[str, Callable[[str], Method]]:
    """name -> patient -> what registers one pair."""
    found: dict[str, Callable[[str], Method]] = {
        "before": lambda _: lambda pair: torch.zeros(1, 2, *pair.fixed.shape[2:]),
        "variational": lambda _: lambda pair: register_variational(pair.moving, pair.fixed),
    }
    if quick:
        return found
    sys.path.insert(0, str(ROOT / "bench" / "variational"))
    from methods import METHODS

    tuned = json.loads((ROOT / "bench" / "results" / "variational.json").read_text())
    for row in tuned["results"]["variance"]:
        name, chosen = row["method"], row["chosen"]
        if name == "identity" or (name.startswith("SyN") and find_spec("ants") is None):
            continue

        def of_patient(patient: str, name=name, chosen=chosen) -> Method:
            setting: dict[str, Any] = json.loads(chosen[patient])
            return lambda pair: METHODS[name](pair.moving, pair.fixed, **setting)

        found["variational, tuned" if name == "diffreg" else f"{name}, tuned"] = of_patient
    return found


def registered(
    study: Study, images: Images, name: str, method: Callable[[str], Method]
) -> list[Row]:
    """All pairs by a method without learning; read where it was measured before."""

    def measure() -> list[Row]:
        pairs = (images.pairs.only([k]) for k in range(len(images.pairs)))
        return [row for pair in pairs for row in measured(pair, method(pair.patients[0])(pair))]

    file = f"{images.name} {name}.json".replace(" ", "_")
    return kept_rows(study.place.folder / file, measure)


def refined(run: Run, pairs: Pairs, steps: int) -> Tensor:
    """Variational steps on the full grid from the network's field."""
    objective = Objective(run.recipe.similarity, run.recipe.weights)
    fields = []
    for k, field in enumerate(predict(run, pairs)):
        pair = pairs.only([k])
        fields.append(
            register_variational(
                pair.moving, pair.fixed, objective, iterations=steps, start=field[None]
            )
        )
    return torch.cat(fields)


class Networks:
    """What has been trained, and what was measured of it.

    Args:
        study, images: of it.
    """

    def __init__(self, study: Study, images: Images) -> None:
        self.study, self.images = study, images
        self.runs: dict[tuple[str, float, int, str], Run] = {}  # (name, strength, seed, patient)
        self.rows: dict[tuple[str, float], list[Row]] = defaultdict(list)

    def train(self, name: str, strength: float, seed: int, patient: str) -> None:
        """One network, measured on the patient that it has not seen."""
        run = self.images.run(self.study, name, patient, strength, seed)
        self.runs[name, strength, seed, patient] = run
        own = self.images.pairs.of(patient)
        rows = rows_of(run, "held out", lambda r: measured(own, predict(r, own)))
        self.rows[name, strength] += [row | {"seed": seed} for row in rows]
        title = f"{name}, energies x {strength:g}, seed {seed}, without {patient}"
        print(f"{title}: {run.seconds:.0f} s on {run.device}", flush=True)

    def refined(self, steps: int) -> list[Row]:
        """Ours, each gone on from by variational steps."""
        found = []
        for (name, strength, _, patient), run in self.runs.items():
            own = self.images.pairs.of(patient)
            if (name, strength) == (OURS, 1):
                found += rows_of(
                    run,
                    f"refined {steps}",
                    lambda r, own=own: measured(own, refined(r, own, steps)),
                )
        return found

    def tuned(self, name: str) -> tuple[dict[str, float], list[Row]]:
        """The strength that was best for the other patients, and the rows with it."""
        search = {strength: self.rows[name, strength] for strength in STRENGTHS}
        patients, judged_by = self.images.patients, self.images.judged_by
        chosen = chosen_on_others(search, patients, judged_by, sign=1)
        return chosen, [
            row for s, found in search.items() for row in found if chosen[row["patient"]] == s
        ]

    def of_split(self) -> dict[str, Run]:
        """name -> the run with its energies as they are, seed 0, on the one split."""
        return {
            name: run
            for (name, strength, seed, patient), run in self.runs.items()
            if (strength, seed, patient) == (1, 0, self.images.split)
        }


def main() -> None:
    study = Study("monomodal", __doc__.partition("\n")[0])
    images = images_of(study)
    names = list(recipes("", 1))
    if study.quick and find_spec("voxelmorph") is None:
        names.remove("VoxelMorph")
    seeds = SEEDS[:1] if study.quick else SEEDS
    jobs = [
        (name, strength, seed, patient)
        for name in names
        for strength in (STRENGTHS if name in TUNED else STRENGTHS[:1])
        for seed in (seeds if strength == 1 and name != "SN" else SEEDS[:1])
        for patient in ([images.split] if name == "SN" else images.patients)
    ]
    networks = Networks(study, images)
    for job in jobs[study.part :: study.parts]:
        networks.train(*job)
    if study.parts == 1:
        report(study, images, networks)


def report(study: Study, images: Images, networks: Networks) -> None:
    """The peers without learning; tables and figures."""
    rows: dict[str, list[Row]] = {}
    strengths = {}
    split = networks.of_split()
    for name in split:
        rows[name] = networks.rows[name, 1]
        if name in TUNED:
            strengths[name], rows[f"{name}, tuned"] = networks.tuned(name)
    for steps in REFINEMENTS:
        rows[f"{OURS} + {steps} variational steps"] = networks.refined(steps)
    methods = without_learning(study.quick)
    for name, method in methods.items():
        rows[name] = registered(study, images, name, method)
    times = timed(images, split, methods)
    tables(study, rows, times)
    seeds_and_strengths(study, networks)
    shown = {name: split[name].curve for name in (OURS, "SN")}
    study.write("monomodal_curves.png", curves(shown, f"trained without {images.split}"))
    picture(study, images, networks)
    fixed = images.pairs.of(images.split).fixed
    study.write_json(
        {
            "rows": rows,
            "milliseconds": times,
            "settled": {name: settled(run) for name, run in split.items()},
            "repair_ms": {
                name: sum(row["repair_ms"] for row in found) / len(found)
                for name, found in rows.items()
            },
            "self_registration": {name: moves_itself(run, fixed) for name, run in split.items()},
            "split": images.split,
            "steps": images.steps,
            "strengths": strengths,
            "training_seconds": {
                f"{name} x {strength:g}, seed {seed}, without {patient}": [run.seconds, run.device]
                for (name, strength, seed, patient), run in networks.runs.items()
            },
            "recipes": {
                name: vars(recipe) for name, recipe in recipes(images.name, images.steps).items()
            },
        }
    )


def settled(run: Run) -> float:
    """By what part of itself the training loss still fell over the last tenth of the steps."""
    losses = [row["training"] for row in run.curve]
    tenth = max(len(losses) // 10, 1)
    before, last = losses[-2 * tenth : -tenth] or losses[:1], losses[-tenth:]
    return 1 - (sum(last) / len(last)) / (sum(before) / len(before))


def timed(
    images: Images, runs: dict[str, Run], methods: dict[str, Callable[[str], Method]]
) -> dict[str, float]:
    """Milliseconds a pair on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pair = images.pairs.of(images.split).only([0])
    times = {name: milliseconds(lambda run=run: predict(run, pair)) for name, run in runs.items()}
    for steps in REFINEMENTS:
        times[f"{OURS} + {steps} variational steps"] = milliseconds(
            lambda n=steps: refined(runs[OURS], pair, n), 5
        )
    for name, method in methods.items():
        times[name] = milliseconds(lambda m=method: m(images.split)(pair), 3)
    torch.set_num_threads(threads)
    return times


def tables(study: Study, rows: dict[str, list[Row]], times: dict[str, float]) -> None:
    """All measures, then Dice against LU-net."""
    lines = []
    for name, found in rows.items():
        patients = len({row["patient"] for row in found})
        lines.append(
            [
                name,
                patients,
                ranged(over_patients(found, "dice")),
                ranged(over_patients(found, "dice_guaranteed")),
                changed(difference(rows[OURS], found, "dice_guaranteed")) if name != OURS else "",
                ranged(over_patients(found, "hd95"), 2),
                ranged(over_patients(found, "assd"), 2),
                f"{over_patients(found, 'ncc')[0]:.3f}",
                f"{over_patients(found, 'relative_ssd')[0]:.3f}",
                f"{over_patients(found, 'ssim')[0]:.3f}",
                f"{over_patients(found, 'folded_percent')[0]:.3f}",
                f"{sum(r['folded_percent'] > 0 for r in found)} of {len(found)}",
                f"{min(r['min_determinant'] for r in found):.3f}",
                f"{min(r['min_determinant_guaranteed'] for r in found):.3f}",
                f"{times[name]:.1f}" if name in times else "-",
            ]
        )
    titles = (
        "method",
        "patients",
        "Dice",
        "Dice, guaranteed",
        "LU-net minus it, guaranteed",
        "HD95, mm",
        "ASSD, mm",
        "NCC",
        "relative SSD",
        "SSIM",
        "folded cells, %",
        "folded pairs",
        "smallest determinant",
        "smallest, guaranteed",
        "ms a pair, one thread",
    )
    study.write_table("", titles, lines)


def seeds_and_strengths(study: Study, networks: Networks) -> None:
    """What another seed does to Dice, and what stronger energies do to Dice and folds."""
    by_seed = [
        [name, *(ranged(over_patients(of_seed(found, seed), "dice_guaranteed")) for seed in SEEDS)]
        for (name, strength), found in networks.rows.items()
        if strength == 1 and name != "SN"
    ]
    titles = ["network", *(f"Dice, guaranteed, seed {seed}" for seed in SEEDS)]
    study.write_table("_seeds", titles, by_seed)
    lines = [
        [
            f"{name}, {strength:g} x its energies",
            ranged(over_patients(found, "dice")),
            ranged(over_patients(found, "dice_guaranteed")),
            f"{over_patients(found, 'relative_ssd')[0]:.3f}",
            f"{over_patients(found, 'folded_percent')[0]:.3f}",
            f"{sum(r['folded_percent'] > 0 for r in found)} of {len(found)}",
        ]
        for (name, strength), rows in networks.rows.items()
        if name in TUNED
        for found in [of_seed(rows, SEEDS[0])]
    ]
    titles = ["network", "Dice", "guaranteed", "relative SSD", "folded cells, %", "folded pairs"]
    study.write_table("_strengths", titles, lines)


def of_seed(rows: Sequence[Row], seed: int) -> list[Row]:
    return [row for row in rows if row["seed"] == seed]


def picture(study: Study, images: Images, networks: Networks) -> None:
    """The four rows, one pair of each patient, by the network that has not seen it."""
    keep, fields = [], []
    for patient in images.patients:
        own = [k for k, p in enumerate(images.pairs.patients) if p == patient]
        keep.append(own[len(own) // 2])
        fields.append(predict(networks.runs[OURS, 1, 0, patient], images.pairs.only(keep[-1:])))
    study.write("monomodal.png", four_rows(images.pairs.only(keep), torch.cat(fields)))


if __name__ == "__main__":
    main()
