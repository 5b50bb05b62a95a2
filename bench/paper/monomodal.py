"""Study 3: mono-modal registration of 160 cardiac MR images.

    python bench/paper/monomodal.py --data DIR [--device cuda]
    python bench/paper/monomodal.py --quick

LU-net trained without one patient at a time, SN on one split, against registration without learning
(ours, ANTs SyN, demons: tuned, bench/variational) and learned peers on the same images and steps:
VoxelMorph, and LU-net with an integration layer and without the determinant term.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from images import ROOT, Frames, Pairs, brain_slices, cardiac
from measuring import Row, difference, measured, milliseconds, over_patients
from pages import Study, changed, ranged
from pictures import curves, four_rows
from torch import Tensor
from training import Recipe, Run, drawing, fit, kept_rows, moves_itself, predict, rows_of

from diffreg.losses import Objective
from diffreg.variational import register_variational

SPLIT = "SCD0000301"  # the patient left out where there is one split
REFINEMENTS = (5, 20)
OURS = "LU-net"


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
    """

    frames: Frames
    pairs: Pairs
    patients: Sequence[str]
    split: str
    name: str
    steps: int

    def run(self, study: Study, method: str, patient: str) -> Run:
        """The network that has not seen a patient."""
        recipe = recipes(f"{self.name} without {patient}", self.steps)[method]
        frames = self.frames.without(patient)
        test = self.pairs.of(patient)
        return fit(recipe, lambda device: drawing(frames, recipe, device), study.place, test)


def images_of(study: Study) -> Images:
    """The hearts, or shipped slices whose patients are thirds of the brain."""
    if not study.quick:
        _, frames, pairs = cardiac(study.data)
        patients = tuple(dict.fromkeys(pairs.patients))
        return Images(frames, pairs, patients, SPLIT, "160 cardiac images", 4000)
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
    return Images(frames, two, names, "lower", "shipped slices", 30)


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


def main() -> None:
    study = Study("monomodal", __doc__.partition("\n")[0])
    images = images_of(study)
    names = list(recipes("", 1))
    if study.quick and find_spec("voxelmorph") is None:
        names.remove("VoxelMorph")
    jobs = [
        (name, p) for name in names for p in images.patients if name != "SN" or p == images.split
    ]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    runs: dict[tuple[str, str], Run] = {}
    for name, patient in jobs[study.part :: study.parts]:
        run = runs[name, patient] = images.run(study, name, patient)
        own = images.pairs.of(patient)
        rows[name] += rows_of(run, "held out", lambda r, own=own: measured(own, predict(r, own)))
        print(f"{name} without {patient}: {run.seconds:.0f} s on {run.device}", flush=True)
    if study.parts > 1:
        return
    for steps in REFINEMENTS:
        found = rows[f"{OURS} + {steps} variational steps"] = []
        for patient in images.patients:
            run, own = runs[OURS, patient], images.pairs.of(patient)
            found += rows_of(
                run,
                f"refined {steps}",
                lambda r, own=own, n=steps: measured(own, refined(r, own, n)),
            )
    methods = without_learning(study.quick)
    for name, method in methods.items():
        rows[name] = registered(study, images, name, method)
    times = timed(study, images, runs, methods)
    tables(study, rows, times)
    converged = {name: settled(runs[name, images.split]) for name in names}
    shown = {name: runs[name, images.split].curve for name in (OURS, "SN")}
    study.write("monomodal_curves.png", curves(shown, f"trained without {images.split}"))
    picture(study, images, runs)
    study.write_json(
        {
            "rows": rows,
            "milliseconds": times,
            "settled": converged,
            "repair_ms": {
                name: sum(row["repair_ms"] for row in found) / len(found)
                for name, found in rows.items()
            },
            "self_registration": {
                name: moves_itself(runs[name, images.split], images.pairs.of(images.split).fixed)
                for name in names
            },
            "split": images.split,
            "steps": images.steps,
            "training_seconds": {
                f"{n} without {p}": [r.seconds, r.device] for (n, p), r in runs.items()
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


def timed(study, images: Images, runs, methods) -> dict[str, float]:
    """Milliseconds a pair on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pair = images.pairs.of(images.split).only([0])
    times = {}
    for (name, patient), run in runs.items():
        if patient == images.split:
            times[name] = milliseconds(lambda run=run: predict(run, pair))
    ours = runs[OURS, images.split]
    for steps in REFINEMENTS:
        times[f"{OURS} + {steps} variational steps"] = milliseconds(
            lambda n=steps: refined(ours, pair, n), 5
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


def picture(study: Study, images: Images, runs: dict[tuple[str, str], Run]) -> None:
    """The four rows, one pair of each patient, by the network that has not seen it."""
    keep, fields = [], []
    for patient in images.patients:
        own = [k for k, p in enumerate(images.pairs.patients) if p == patient]
        keep.append(own[len(own) // 2])
        fields.append(predict(runs[OURS, patient], images.pairs.only(keep[-1:])))
    study.write("monomodal.png", four_rows(images.pairs.only(keep), torch.cat(fields)))


if __name__ == "__main__":
    main()
