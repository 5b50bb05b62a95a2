"""Study 4: LU-net against SN, mono- and multi-modal.

    python bench/paper/networks.py --data DIR [--device cuda]
    python bench/paper/networks.py --quick

Both networks on the split of studies 3 and 5 that leaves one patient out; what those studies have
trained is read, not trained again. The pairs are of one patient: an interval over them says how the
pairs vary, not the patients.
"""

from __future__ import annotations

import monomodal
import multimodal
from images import Pairs
from measuring import Row, mean_and_interval, measured, milliseconds
from pages import Study, changed, ranged
from pictures import curves
from training import Run, predict, rows_of

NAMES = {"lunet": "LU-net", "sn": "SN"}


def main() -> None:
    study = Study("networks", __doc__.partition("\n")[0])
    mono, multi = monomodal.images_of(study), multimodal.Setup(study)
    jobs = [("mono-modal", name) for name in NAMES.values()]
    jobs += [(f"multi-modal, {measure}", model) for measure in multi.measures for model in NAMES]
    lines, found, runs = [], {}, {}
    for task, model in jobs[study.part :: study.parts]:
        if task == "mono-modal":
            run, own = mono.run(study, model, mono.split), mono.pairs.of(mono.split)
            rows = rows_of(run, "held out", lambda r, own=own: measured(own, predict(r, own)))
        else:
            run, own = (
                multi.run(task.partition(", ")[2], multi.split, model),
                multi.pairs.of(multi.split),
            )
            rows = multi.rows(run, multi.split)
        name = NAMES.get(model, model)
        runs[task, name], found[f"{task}, {name}"] = run, rows
        ms = timed(run, own)
        lines.append([task, name, *_numbers(run, rows), f"{ms:.1f}"])
    made = {f"{task}, {name}": vars(run.recipe) for (task, name), run in runs.items()}
    recipes = {"recipes": made}
    if study.parts > 1:
        return
    titles = (
        "pairs",
        "network",
        "parameters",
        "Dice",
        "guaranteed",
        "end-point error, pixels",
        "guaranteed",
        "folded cells, %",
        "smallest determinant",
        "loss on test pairs, end",
        "training, s",
        "ms a pair, two threads",
    )
    study.write_table("", titles, lines)
    against = []
    for task in dict.fromkeys(task for task, _ in runs):
        lunet, sn = (found[f"{task}, {name}"] for name in NAMES.values())
        measure = "dice" if task == "mono-modal" else "end_point_error"
        both = [
            (a[f"{measure}_guaranteed"], b[f"{measure}_guaranteed"])
            for a, b in zip(lunet, sn, strict=True)
            if f"{measure}_guaranteed" in a
        ]
        better = mean_and_interval([a - b for a, b in both])
        against.append(
            [task, "Dice" if measure == "dice" else "end-point error", changed(better), len(both)]
        )
        shown = {name: runs[task, name].curve for name in NAMES.values()}
        ending = task.replace("multi-modal, ", "").replace("-", "")
        study.write(f"networks_{ending}.png", curves(shown, task))
    study.write_table(
        "_difference",
        ("pairs", "measure", "LU-net minus SN [over pairs]", "pairs measured"),
        against,
    )
    study.write_json(
        {"rows": found, "difference": against, "split": mono.split, "recipes": recipes}
    )


def timed(run: Run, pairs: Pairs) -> float:
    """Milliseconds of the first pair."""
    one = pairs.only([0])
    return milliseconds(lambda: predict(run, one))


def _numbers(run: Run, rows: list[Row]) -> list[str]:
    def mean(name: str) -> str:
        return ranged(mean_and_interval([row[name] for row in rows if name in row]))

    parameters = sum(p.numel() for p in run.network.parameters())
    return [
        f"{parameters:,}",
        mean("dice"),
        mean("dice_guaranteed"),
        mean("end_point_error"),
        mean("end_point_error_guaranteed"),
        f"{mean_and_interval([r['folded_percent'] for r in rows])[0]:.3f}",
        f"{min(r['min_determinant'] for r in rows):.2f}",
        f"{run.curve[-1].get('test', float('nan')):.2f}",
        f"{run.seconds:.0f} ({run.device})",
    ]


if __name__ == "__main__":
    main()
