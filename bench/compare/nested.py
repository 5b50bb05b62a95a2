"""Settings chosen without the patient that is measured, and intervals over patients.

For each patient the setting with the best mean Dice of the other patients is taken (each patient's
mean over its pairs first).
"""

import itertools
from collections import Counter, defaultdict

import numpy as np

MEASURES = ("dice", "hd95", "assd", "folded_percent")
Runs = dict[tuple[str, ...], dict]  # (crop, method, setting, pair) -> what was measured


def patient_of(pair: str) -> str:
    return pair.partition("/")[0]


def by_setting(runs: Runs, crop: str, method: str) -> dict[str, dict[str, dict]]:
    """setting -> pair -> run, of the settings that were run on every pair."""
    found: dict[str, dict[str, dict]] = defaultdict(dict)
    for (a_crop, a_method, setting, pair), run in runs.items():
        if (a_crop, a_method) == (crop, method):
            found[setting][pair] = run
    most = max((len(pairs) for pairs in found.values()), default=0)
    return {setting: pairs for setting, pairs in found.items() if len(pairs) == most}


def patient_means(pairs: dict[str, dict], measure: str) -> dict[str, float]:
    values = defaultdict(list)
    for pair, run in pairs.items():
        values[patient_of(pair)].append(run[measure])
    return {patient: float(np.mean(each)) for patient, each in sorted(values.items())}


def chosen(settings: dict[str, dict[str, dict]]) -> dict[str, str]:
    """patient -> the setting that was best for the others; the first of the grid where two tie."""
    dice = {setting: patient_means(pairs, "dice") for setting, pairs in settings.items()}
    patients = next(iter(dice.values()))
    return {
        patient: max(
            dice, key=lambda s: np.mean([v for other, v in dice[s].items() if other != patient])
        )
        for patient in patients
    }


def interval(values: list[float]) -> list[float]:
    """95 % bootstrap interval of the mean of a few values: over every resample there is."""
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))]
    return [float(np.percentile(means, p)) for p in (2.5, 97.5)]


def nested(runs: Runs, crop: str, method: str, choice: dict[str, str] | None = None) -> dict:
    """The pairs of each patient with the setting chosen on the others.

    Args:
        choice: patient -> setting, where it was made on another crop; None: made here.
    """
    settings = by_setting(runs, crop, method)
    choice = choice or chosen(settings)
    pairs = {
        pair: run
        for patient, setting in choice.items()
        for pair, run in settings[setting].items()
        if patient_of(pair) == patient
    }
    patients = {measure: patient_means(pairs, measure) for measure in MEASURES}
    return {
        "method": method,
        "settings_tried": len(settings),
        "chosen": choice,
        "patients": patients,
        "mean": {measure: float(np.mean(list(patients[measure].values()))) for measure in MEASURES},
        "interval": {measure: interval(list(patients[measure].values())) for measure in MEASURES},
        "mean_of_pairs": {m: float(np.mean([run[m] for run in pairs.values()])) for m in MEASURES},
        "folded_pairs": sum(run["folded_percent"] > 0 for run in pairs.values()),
        "smallest_determinant": min(run["min_determinant"] for run in pairs.values()),
        "pairs": len(pairs),
    }


def versus(ours: dict, theirs: dict) -> dict:
    """Ours minus theirs, patient by patient."""
    differences = {}
    for measure in ("dice", "hd95", "assd"):
        a, b = ours["patients"][measure], theirs["patients"][measure]
        each = [a[patient] - b[patient] for patient in a]
        differences[measure] = {"mean": float(np.mean(each)), "interval": interval(each)}
    return differences


def usual_setting(result: dict) -> str:
    """The setting that most patients got."""
    return Counter(result["chosen"].values()).most_common(1)[0][0]


def table(results: list[dict]) -> str:
    """Markdown: means over patients with intervals; ours is the first row after identity."""
    lines = [
        "| method | Dice | Dice, mean of pairs | Dice, ours minus it | HD95, mm | ASSD, mm "
        "| folded cells, % (pairs) | smallest determinant | ms a pair |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        mean, spread = result["mean"], result["interval"]
        cells = [
            result["method"],
            f"{mean['dice']:.4f} [{spread['dice'][0]:.4f}, {spread['dice'][1]:.4f}]",
            f"{result['mean_of_pairs']['dice']:.4f}",
            _difference(result.get("ours_minus_this")),
            f"{mean['hd95']:.2f} [{spread['hd95'][0]:.2f}, {spread['hd95'][1]:.2f}]",
            f"{mean['assd']:.3f} [{spread['assd'][0]:.3f}, {spread['assd'][1]:.3f}]",
            f"{result['mean_of_pairs']['folded_percent']:.3f} ({result['folded_pairs']})",
            f"{result['smallest_determinant']:.3f}",
            f"{result['ms']:.0f}" if "ms" in result else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(versus_this: dict | None) -> str:
    if versus_this is None:
        return ""
    low, high = versus_this["dice"]["interval"]
    tie = " (tie)" if low <= 0 <= high else ""
    return f"{versus_this['dice']['mean']:+.4f} [{low:+.4f}, {high:+.4f}]{tie}"
