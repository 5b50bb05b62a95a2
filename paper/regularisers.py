"""Study 1: regularisers under large displacements.

    python paper/regularisers.py --data DIR [--device cuda]
    python paper/regularisers.py --quick

The same network, pairs and steps under four regularisers, five weights each, three seeds: accuracy
against folded cells. Test pairs are generated shapes with a known displacement, discs that become a
C, and one heart that no network has seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from drawing import drawing, drawing_pairs
from images import Frames, Pairs, cardiac, disc_to_c, shapes
from measuring import Row, measured
from pages import Study, ranged
from pictures import compared, front
from predicting import predict
from recipes import Recipe
from training import Run, fit, rows_of

HEART = "SCD0000301"
# name -> weight -> what of a recipe it sets; the weights are factors of (1, 30, 3), or plain.
REGULARISERS = {
    "E1 + E2 + E_det (new)": lambda w: {"weights": (60, w, 30 * w, 3 * w)},
    "E1 + E2": lambda w: {"weights": (60, w, 30 * w, 0)},
    "total variation": lambda w: {"weights": (60, 0, 0, 0), "variation": w},
    "diffusion": lambda w: {"weights": (60, w, 0, 0)},
}
NEW = next(iter(REGULARISERS))
FEW = 0.01  # percent of cells that count as hardly any
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0)
PLAIN = (1.0, 3.0, 10.0, 30.0, 100.0)


def weights_of(name: str, quick: bool) -> Sequence[float]:
    found = FACTORS if name.startswith("E1") else PLAIN
    return found[1::2] if quick else found


class Task:
    """Images to train on, and pairs to test on.

    Args:
        name: of it.
        train: pairs, or frames of which any two of a series are a pair.
        tests: name -> pairs.
        recipe: what all of its runs share.
    """

    def __init__(self, name: str, train: Pairs | Frames, tests: dict[str, Pairs], recipe: Recipe):
        self.name, self.train, self.tests, self.recipe = name, train, tests, recipe

    def run(self, study: Study, regulariser: str, weight: float, seed: int) -> Run:
        """The network of one regulariser, weight and seed."""
        settings = REGULARISERS[regulariser](weight)
        recipe = Recipe(**(vars(self.recipe) | settings | {"seed": seed}))

        def draw(device):
            make = drawing_pairs if isinstance(self.train, Pairs) else drawing
            return make(self.train, recipe, device)

        return fit(recipe, draw, study.place)


def tasks(study: Study) -> list[Task]:
    """The shapes, and in the full form the hearts."""
    steps, count = (120, 40) if study.quick else (2000, 600)
    train = _joined(shapes(count, 1), disc_to_c(count // 3, 2))
    tests = {
        "shapes": shapes(6 if study.quick else 100, 11),
        "disc to C": disc_to_c(4 if study.quick else 20, 12),
    }
    name = f"{count} shapes, {count // 3} discs to C"
    recipe = Recipe(name, similarity={"ncc": 1.0}, steps=steps, crop=64)
    found = [Task("shapes", train, tests, recipe)]
    if not study.quick:
        frames, _, pairs = cardiac(study.data)
        recipe = Recipe(f"hearts without {HEART}", steps=1500)
        held_out = {"cardiac": pairs.of(HEART)}
        found.append(Task("cardiac", frames.without(HEART), held_out, recipe))
    return found


def _joined(a: Pairs, b: Pairs) -> Pairs:
    """Pairs to train on: images alone."""
    moving, fixed = (torch.cat([getattr(p, k) for p in (a, b)]) for k in ("moving", "fixed"))
    return Pairs(a.names + b.names, a.patients + b.patients, moving, fixed)


MEASURES = (
    "dice",
    "end_point_error",
    "normal_error",
    "relative_ssd",
    "folded_percent",
    "folded_percent_forward",
    "folded_percent_central",
    "min_determinant",
    "dice_guaranteed",
    "moved_voxels",
    "normal_error_guaranteed",
    "relative_ssd_guaranteed",
    "largest_displacement",
)


def main() -> None:
    study = Study("regularisers", __doc__.partition("\n")[0])
    seeds = (0,) if study.quick else (0, 1, 2)
    found: list[Row] = []
    all_tasks = tasks(study)
    jobs = [
        (task, name, weight, seed)
        for task in all_tasks
        for name in REGULARISERS
        for weight, seed in product(weights_of(name, study.quick), seeds)
    ]
    for task, name, weight, seed in jobs[study.part :: study.parts]:
        run = task.run(study, name, weight, seed)
        for test, pairs in task.tests.items():
            rows = rows_of(run, test, lambda r, pairs=pairs: measured(pairs, predict(r, pairs)))
            values = averages(rows)
            about = {"test": test, "regulariser": name, "weight": weight, "seed": seed}
            training = {"trained_on": run.device, "training_seconds": run.seconds}
            found.append(about | values | training | {"recipe": vars(run.recipe)})
        print(
            f"{task.name}, {name}, {weight:g}, seed {seed}: Dice {values['dice']:.3f}, "
            f"folded {values['folded_percent']:.2f} %",
            flush=True,
        )
    if not study.partial:
        report(study, all_tasks, found)


def report(study: Study, all_tasks: Sequence[Task], found: Sequence[Row]) -> None:
    """Tables, figures and the claim."""
    before = {
        test: averages(measured(pairs, torch.zeros(len(pairs), 2, *pairs.fixed.shape[2:])))
        for task in all_tasks
        for test, pairs in task.tests.items()
    }
    fronts(study, found, before)
    pictures(study, all_tasks, found)
    truth = all_tasks[0].tests["shapes"].truth
    assert truth is not None
    reach = truth.norm(dim=1).amax((1, 2))
    study.write_json(
        {
            "rows": found,
            "before": before,
            "largest_true_displacement": [float(reach.min()), float(reach.max())],
            "claim": claim(found),
        }
    )


def averages(rows: Sequence[Row]) -> dict[str, float]:
    """Over the pairs; of the smallest determinant the smallest, of folded pairs the share."""
    values = {m: float(np.mean([r[m] for r in rows])) for m in MEASURES if m in rows[0]}
    values["min_determinant"] = min(r["min_determinant"] for r in rows)
    values["folded_pairs"] = float(np.mean([r["folded_percent"] > 0 for r in rows]))
    return values


Settings = dict[tuple[str, float], list[Row]]  # (regulariser, weight) -> its seeds


def by_test(found: Sequence[Row]) -> dict[str, Settings]:
    """The rows of every test and setting."""
    tests: dict[str, Settings] = defaultdict(lambda: defaultdict(list))
    for row in found:
        tests[row["test"]][row["regulariser"], row["weight"]].append(row)
    return tests


def mean(rows: Sequence[Row], name: str) -> float:
    """Over seeds."""
    return float(np.mean([row[name] for row in rows]))


def over_seeds(rows: Sequence[Row], name: str) -> tuple[float, float, float]:
    """Mean, smallest and largest."""
    values = [row[name] for row in rows]
    return float(np.mean(values)), min(values), max(values)


def fronts(study: Study, found: Sequence[Row], before: dict[str, Row]) -> None:
    """Accuracy against folds: a table a test, and one figure."""
    panels: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for test, settings in by_test(found).items():
        edges = test == "shapes"  # where the truth is known
        lines, panels[test] = [["before", "", *_numbers([before[test]], edges)]], defaultdict(list)
        for (name, weight), rows in settings.items():
            point = mean(rows, "folded_percent"), *over_seeds(rows, "dice")
            panels[test][name].append(point)
            lines.append([name, f"{weight:g}", *_numbers(rows, edges)])
        errors = ("error across the edges", "guaranteed", "whole error there") if edges else ()
        titles = (
            "regulariser",
            "weight",
            "Dice [range of the seeds]",
            "guaranteed",
            *errors,
            "relative SSD",
            "guaranteed",
            "folded cells, %",
            "by forward differences",
            "by central differences",
            "folded pairs, %",
            "smallest determinant",
            "voxels that the guarantee moves",
            "largest displacement, voxels",
        )
        study.write_table("_" + test.replace(" ", "_"), titles, lines)
    study.write("regularisers_front.png", front(panels))


def _numbers(rows: Sequence[Row], edges: bool) -> list[str]:
    dice = over_seeds(rows, "dice")
    errors = ("normal_error", "normal_error_guaranteed", "end_point_error") if edges else ()
    return [
        ranged(dice) if len(rows) > 1 else f"{dice[0]:.3f}",
        f"{mean(rows, 'dice_guaranteed'):.3f}",
        *(f"{mean(rows, name):.2f}" for name in errors),
        f"{mean(rows, 'relative_ssd'):.3f}",
        f"{mean(rows, 'relative_ssd_guaranteed'):.3f}",
        f"{mean(rows, 'folded_percent'):.3f}",
        f"{mean(rows, 'folded_percent_forward'):.3f}",
        f"{mean(rows, 'folded_percent_central'):.3f}",
        f"{100 * mean(rows, 'folded_pairs'):.0f}",
        f"{min(row['min_determinant'] for row in rows):.2f}",
        f"{mean(rows, 'moved_voxels'):.0f}",
        f"{mean(rows, 'largest_displacement'):.1f}",
    ]


def claim(found: Sequence[Row]) -> dict[str, Any]:
    """Of every test, which settings of the others the new regulariser dominates, seeds averaged.

    One dominates another where it folds no more and its Dice is no smaller. Beside it of each
    regulariser the best Dice where hardly a cell folds (FEW), with the range of its seeds, and how
    much folds at the weights where least and most does.
    """
    result: dict[str, Any] = {}
    for test, settings in by_test(found).items():
        points: dict[str, list[tuple[float, float, list[Row]]]] = defaultdict(list)
        for (name, _), rows in settings.items():
            points[name].append((mean(rows, "dice"), mean(rows, "folded_percent"), rows))
        others = [point for name, own in points.items() if name != NEW for point in own]
        dominated = [any(n[0] >= o[0] and n[1] <= o[1] for n in points[NEW]) for o in others]
        each: dict[str, Any] = {}
        for name, own in points.items():
            unfolded = [point for point in own if point[1] < FEW]
            best = max(unfolded, key=lambda point: point[0], default=None)
            each[name] = {
                "unfolded": best and over_seeds(best[2], "dice"),
                "folded": [min(p[1] for p in own), max(p[1] for p in own)],
            }
        result[test] = {"dominated": sum(dominated), "of": len(others), "each": each}
    return result


def pictures(study: Study, all_tasks: Sequence[Task], found: Sequence[Row]) -> None:
    """One pair of each task, seed 0: each regulariser where it fits images as NEW does at 1."""
    for task in all_tasks:
        test = list(task.tests)[-1]
        pairs = task.tests[test]
        rows = [row for row in found if (row["test"], row["seed"]) == (test, 0)]
        wanted = next(r for r in rows if (r["regulariser"], r["weight"]) == (NEW, 1))
        columns = []
        for name in REGULARISERS:
            own = [row for row in rows if row["regulariser"] == name]
            nearest = min(own, key=lambda r: abs(r["relative_ssd"] - wanted["relative_ssd"]))
            run = task.run(study, name, nearest["weight"], 0)
            title = f"{name}\nweight {nearest['weight']:g}"
            columns.append((title, predict(run, pairs.only([0]))))
        study.write(f"regularisers_{task.name}.png", compared(pairs.only([0]), columns))


if __name__ == "__main__":
    main()
