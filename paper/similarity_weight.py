"""Study 2: the weight of the similarity, lambda.

    python paper/similarity_weight.py --data DIR [--device cuda]
    python paper/similarity_weight.py --quick

lambda = 200, 60, 20, 5 beside the energies' weights of both presets; images and meshes of one heart
that no network has seen.
"""

from __future__ import annotations

import numpy as np
from drawing import drawing
from images import brain_slices, cardiac
from measuring import Row, mean_and_interval, measured
from pages import Study, ranged
from pictures import compared
from predicting import predict
from recipes import Recipe
from training import Run, fit, rows_of

HEART = "SCD0000301"
LAMBDAS = (200, 60, 20, 5)
ENERGIES = {"default": (1, 30, 3), "paper": (1, 1, 1)}


def main() -> None:
    study = Study("similarity_weight", __doc__.partition("\n")[0])
    if study.quick:
        frames, pairs = brain_slices()
        pairs = pairs.only([9, 11])
        name, steps, crop, lambdas = "shipped slices", 30, 96, LAMBDAS[::3]
    else:
        frames, _, pairs = cardiac(study.data)
        frames, pairs = frames.without(HEART), pairs.of(HEART)
        name, steps, crop, lambdas = f"hearts without {HEART}", 2000, 96, LAMBDAS

    def run(preset: str, factor: float) -> Run:
        weights = (factor, *ENERGIES[preset])
        recipe = Recipe(name, similarity={"ncc": 1.0}, weights=weights, steps=steps, crop=crop)
        return fit(recipe, lambda device: drawing(frames, recipe, device), study.place)

    jobs = [(preset, factor) for preset in ENERGIES for factor in lambdas]
    found: list[Row] = []
    for preset, factor in jobs[study.part :: study.parts]:
        trained = run(preset, factor)
        rows = rows_of(trained, "held out", lambda r: measured(pairs, predict(r, pairs)))
        names = [key for key, value in rows[0].items() if isinstance(value, float)]
        values = {key: float(np.mean([row[key] for row in rows if key in row])) for key in names}
        values["min_determinant"] = min(row["min_determinant"] for row in rows)
        for key in ("dice", "dice_guaranteed"):
            values[f"{key}_interval"] = mean_and_interval([row[key] for row in rows if key in row])
        about = {"preset": preset, "lambda": factor, "trained_on": trained.device}
        about["recipe"] = vars(trained.recipe)
        found.append(about | values | {"pairs": len(rows)})
    if study.partial:
        return
    lines = [
        [
            r["lambda"],
            str(ENERGIES[r["preset"]]),
            ranged(r["dice_interval"]),
            ranged(r["dice_guaranteed_interval"]),
            f"{r['ncc']:.3f}",
            f"{r['relative_ssd']:.3f}",
            f"{r['ssim']:.3f}",
            f"{r['folded_percent']:.3f}",
            f"{r['folded_percent_forward']:.3f}",
            f"{r['folded_percent_central']:.3f}",
            f"{r['min_determinant']:.2f}",
            f"{r['largest_displacement']:.1f}",
        ]
        for r in found
    ]
    titles = (
        "lambda",
        "energies' weights",
        "Dice [over the pairs]",
        "Dice, guaranteed",
        "NCC",
        "relative SSD",
        "SSIM",
        "folded cells, %",
        "by forward differences",
        "by central differences",
        "smallest determinant",
        "largest displacement, voxels",
    )
    study.write_table("", titles, lines)
    one = pairs.only([len(pairs) // 2])
    for preset in ENERGIES:
        columns = [(f"lambda = {f}", predict(run(preset, f), one)) for f in lambdas]
        study.write(f"similarity_weight_{preset}.png", compared(one, columns))
    study.write_json({"rows": found, "held_out": HEART})


if __name__ == "__main__":
    main()
