"""Study 4: LU-net against SN, mono- and multi-modal.

    python paper/networks.py --data DIR [--device cuda]
    python paper/networks.py --quick

Both networks on the split of studies 3 and 5 that leaves one patient out; what those studies have
trained is read, not trained again. The pairs are of one patient: an interval over them says how the
pairs vary, not the patients.
"""

from __future__ import annotations

import monomodal_networks as monomodal
import multimodal_networks as multimodal
from images import Pairs
from measuring import Row, mean_and_interval, measured, milliseconds
from pages import Study, changed, ranged
from pictures import curves
from predicting import predict
from training import Run, rows_of

NAMES = {"lunet": "LU-net", "sn": "SN"}
ERROR = "end_point_error"


def main() -> None:
    study = Study("networks", __doc__.partition("\n")[0])
    mono, multi = monomodal.images_of(study), multimodal.Setup(study)
    jobs = [("mono-modal", model) for model in NAMES]
    jobs += [(f"multi-modal, {measure}", model) for measure in multi.measures for model in NAMES]
    runs: dict[tuple[str, str], Run] = {}  # (task, name)
    rows: dict[tuple[str, str], list[Row]] = {}
    lines = []
    for task, model in jobs[study.part :: study.parts]:
        name = NAMES[model]
        if task == "mono-modal":
            run, own = mono.run(study, name, mono.split), mono.pairs.of(mono.split)
            found = rows_of(run, "held out", lambda r, own=own: measured(own, predict(r, own)))
        else:
            run = multi.run(task.partition(", ")[2], multi.split, model)
            found, own = multi.rows(run, multi.split), multi.pairs.of(multi.split)
        runs[task, name], rows[task, name] = run, found
        lines.append([task, name, *_numbers(run, found), f"{timed(run, own):.1f}"])
    if not study.partial:
        report(study, lines, runs, rows)


def report(
    study: Study,
    lines: list[list[str]],
    runs: dict[tuple[str, str], Run],
    rows: dict[tuple[str, str], list[Row]],
) -> None:
    """Tables, and the curves of both networks."""
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
        "ms a pair, two threads",
    )
    study.write_table("", titles, lines)
    differences = []
    for task in dict.fromkeys(task for task, _ in runs):
        better, measure, count = lunet_minus_sn(task, rows)
        differences.append({"pairs": task, "measure": measure, "better": better, "count": count})
        shown = {name: runs[task, name].curve for name in NAMES.values()}
        ending = task.replace("multi-modal, ", "").replace("-", "")
        study.write(f"networks_{ending}.png", curves(shown, task))
    study.write_table(
        "_difference",
        ("pairs", "measure", "LU-net minus SN [over pairs]", "pairs measured"),
        [[d["pairs"], d["measure"], changed(d["better"]), d["count"]] for d in differences],
    )
    study.write_json(
        {
            "rows": {", ".join(key): found for key, found in rows.items()},
            "difference": differences,
            "recipes": {", ".join(key): vars(run.recipe) for key, run in runs.items()},
            "training_seconds": {", ".join(k): [r.seconds, r.device] for k, r in runs.items()},
        }
    )


def lunet_minus_sn(
    task: str, rows: dict[tuple[str, str], list[Row]]
) -> tuple[tuple[float, float, float], str, int]:
    """The difference with its interval over pairs, of which measure, of how many pairs."""
    name, words = ("dice", "Dice") if task == "mono-modal" else (ERROR, "end-point error")
    name += "_guaranteed"
    both = [
        (a[name], b[name])
        for a, b in zip(rows[task, "LU-net"], rows[task, "SN"], strict=True)
        if name in a
    ]
    return mean_and_interval([a - b for a, b in both]), words, len(both)


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
    ]


if __name__ == "__main__":
    main()
