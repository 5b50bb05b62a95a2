"""Study 3: mono-modal registration of 160 cardiac MR images.

    python paper/monomodal.py --data DIR [--device cuda]
    python paper/monomodal.py --quick

LU-net trained without one patient at a time, SN on one split, against registration without learning
(ours, ANTs SyN, demons: tuned, bench/compare) and learned peers on the same images and steps:
VoxelMorph, and LU-net with an integration layer and without the determinant term. LU-net and
VoxelMorph as they come, and with energies as strong as was best for the other patients.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from images import ROOT, Pairs
from measuring import (
    Row,
    as_guaranteed,
    difference,
    measured,
    milliseconds,
    milliseconds_in_turn,
    of_seed,
    over_patients,
)
from monomodal_networks import (
    OURS,
    SEEDS,
    TUNED,
    Images,
    Job,
    Trained,
    images_of,
    jobs,
    recipes,
)
from pages import Study, changed, ranged
from pictures import curves, four_rows
from predicting import moves_itself, predict, refined
from torch import Tensor
from training import Run, kept_rows

from diffreg.losses import Objective
from diffreg.registration import register_variational

REFINEMENTS = (5, 20)
Method = Callable[[Pairs], Tensor]


def without_learning(quick: bool) -> dict[str, Callable[[str], Method]]:
    """name -> patient -> what registers one pair."""
    found: dict[str, Callable[[str], Method]] = {
        "before": lambda _: lambda pair: torch.zeros(1, 2, *pair.fixed.shape[2:]),
        "variational": lambda _: lambda pair: register_variational(pair.moving, pair.fixed),
    }
    if quick:
        return found
    sys.path.insert(0, str(ROOT / "bench" / "compare"))
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


def main() -> None:
    study = Study("monomodal", __doc__.partition("\n")[0])
    images = images_of(study)
    names = list(recipes("", 1))
    if study.quick and find_spec("voxelmorph") is None:
        names.remove("VoxelMorph")
    trained = Trained(study, images)
    todo = jobs(names, images, SEEDS[:1] if study.quick else SEEDS)
    for job in todo[study.part :: study.parts]:
        trained.add(job)
    if not study.partial:
        report(study, images, trained)


def report(study: Study, images: Images, trained: Trained) -> None:
    """The peers without learning; tables and figures."""
    rows: dict[str, list[Row]] = {}
    strengths = {}
    split = trained.of_split()
    for name in split:
        rows[name] = trained.rows[name, 1]
        if name in TUNED:
            strengths[name], rows[f"{name}, tuned"] = trained.tuned(name)
    for steps in REFINEMENTS:
        rows[f"{OURS} + {steps} variational steps"] = trained.refined(steps)
    methods = without_learning(study.quick)
    for name, method in methods.items():
        rows[name] = registered(study, images, name, method)
    times = timed(images, split, methods)
    tables(study, rows, times)
    seeds_and_strengths(study, trained)
    shown = {name: split[name].curve for name in (OURS, "SN")}
    study.write("monomodal_curves.png", curves(shown, f"trained without {images.split}"))
    picture(study, images, trained)
    fixed = images.pairs.of(images.split).fixed
    study.write_json(
        {
            "rows": rows,
            "milliseconds": times,
            "settled": {name: settled(run) for name, run in split.items()},
            "self_registration": {name: moves_itself(run, fixed) for name, run in split.items()},
            "split": images.split,
            "steps": images.steps,
            "strengths": strengths,
            "training_seconds": {j.title: [r.seconds, r.device] for j, r in trained.runs.items()},
            "recipes": {j.title: vars(run.recipe) for j, run in trained.runs.items()},
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
    works = {name: lambda run=run: predict(run, pair) for name, run in runs.items()}
    ours = runs[OURS]
    objective = Objective(ours.recipe.similarity, ours.recipe.weights)
    for steps in REFINEMENTS:
        works[f"{OURS} + {steps} variational steps"] = lambda n=steps: refined(
            ours, pair, objective, n
        )
    times = {name: median for name, (median, *_) in milliseconds_in_turn(works).items()}
    for name, method in methods.items():
        times[name] = milliseconds(lambda m=method: m(images.split)(pair), 3)
    torch.set_num_threads(threads)
    return times


def tables(study: Study, rows: dict[str, list[Row]], times: dict[str, float]) -> None:
    """All measures of every method, and again where the guarantee changed a field."""
    lines = []
    for name, found in rows.items():
        own = rows[OURS] if name != OURS else []
        lines.append([name, *_numbers(found, own), f"{times[name]:.1f}" if name in times else "-"])
        repaired = [row for row in found if row["moved_voxels"]]
        if repaired:
            ms = [row["repair_ms"] for row in repaired]
            lines.append(
                [
                    f"{name}, guaranteed",
                    *_numbers(as_guaranteed(found), as_guaranteed(own)),
                    f"+ {np.median(ms):.0f}, at most {max(ms):.0f}",
                ]
            )
    titles = (
        "method",
        "patients",
        "Dice",
        "LU-net minus it",
        "HD95, mm",
        "ASSD, mm",
        "NCC",
        "relative SSD",
        "SSIM",
        "folded cells, %",
        "folded pairs",
        "smallest determinant",
        "ms a pair, one thread",
    )
    study.write_table("", titles, lines)


def _numbers(found: list[Row], ours: list[Row]) -> list[str]:
    return [
        f"{len({row['patient'] for row in found})}",
        ranged(over_patients(found, "dice")),
        changed(difference(ours, found, "dice")) if ours else "",
        ranged(over_patients(found, "hd95"), 2),
        ranged(over_patients(found, "assd"), 2),
        f"{over_patients(found, 'ncc')[0]:.3f}",
        f"{over_patients(found, 'relative_ssd')[0]:.3f}",
        f"{over_patients(found, 'ssim')[0]:.3f}",
        f"{over_patients(found, 'folded_percent')[0]:.3f}",
        f"{sum(r['folded_percent'] > 0 for r in found)} of {len(found)}",
        f"{min(r['min_determinant'] for r in found):.3f}",
    ]


def seeds_and_strengths(study: Study, trained: Trained) -> None:
    """What another seed does to Dice, and what stronger energies do to Dice and folds."""
    kinds = ("dice", "dice_guaranteed")
    by_seed = [
        [name, *(ranged(over_patients(of_seed(found, s), k)) for s in SEEDS for k in kinds)]
        for (name, strength), found in trained.rows.items()
        if strength == 1 and name != "SN"
    ]
    titles = ["network", *(t for s in SEEDS for t in (f"Dice, seed {s}", "guaranteed"))]
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
        for (name, strength), rows in trained.rows.items()
        if name in TUNED
        for found in [of_seed(rows, SEEDS[0])]
    ]
    titles = ["network", "Dice", "guaranteed", "relative SSD", "folded cells, %", "folded pairs"]
    study.write_table("_strengths", titles, lines)


def picture(study: Study, images: Images, trained: Trained) -> None:
    """The four rows, one pair of each patient, by the network that has not seen it."""
    keep, fields = [], []
    for patient in images.patients:
        own = [k for k, p in enumerate(images.pairs.patients) if p == patient]
        keep.append(own[len(own) // 2])
        fields.append(predict(trained.runs[Job(OURS, patient)], images.pairs.only(keep[-1:])))
    study.write("monomodal.png", four_rows(images.pairs.only(keep), torch.cat(fields)))


if __name__ == "__main__":
    main()
