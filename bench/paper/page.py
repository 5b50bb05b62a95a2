"""Puts docs/paper/README.md together: page.md, filled with what the studies left in docs/paper.

python bench/paper/page.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from measuring import by_patient, difference, over_patients
from pages import PAGES, changed, ranged
from regularisers import FEW, NEW

from diffreg._files import replacing

Row = dict[str, Any]
STUDIES = (
    "regularisers",
    "similarity_weight",
    "monomodal",
    "networks",
    "multimodal",
    "realtime",
)


def main() -> None:
    with replacing(PAGES / "README.md") as temporary:
        temporary.write_text(page())


def page() -> str:
    """The page as the files of docs/paper make it; a study that has not been run leaves dashes."""
    held = {
        name: json.loads((PAGES / f"{name}.json").read_text())
        for name in STUDIES
        if (PAGES / f"{name}.json").exists()
    }
    missing = [name for name in STUDIES if name not in held]
    values: dict[str, str] = defaultdict(lambda: "-")
    values |= {path.stem: path.read_text() for path in PAGES.glob("*.md")}
    for name, study in held.items():
        values |= VALUES.get(name, lambda _: {})(study)
    lines = [f"| {claim} | {found} |" for name in held for claim, found in CLAIMS[name](held[name])]
    values["claims"] = "\n".join(["| claim | held here? |", "| --- | --- |", *lines])
    values["devices"] = ", ".join(sorted(set().union(*map(_devices, held.values()))))
    values["processor"] = ", ".join(sorted({s["machine"]["processor"] for s in held.values()}))
    values["missing"] = f" Not run yet: {', '.join(missing)}." if missing else ""
    return (Path(__file__).parent / "page.md").read_text().format_map(values)


def _devices(study: Row) -> set[str]:
    rows = study["rows"] if isinstance(study["rows"], list) else []
    seconds = study.get("training_seconds", {}).values()
    return {row["trained_on"] for row in rows if "trained_on" in row} | {d for _, d in seconds}


def _of_regularisers(study: Row) -> dict[str, str]:
    low, high = study["largest_true_displacement"]
    return {"seeds": str(study["seeds"]), "reach": f"{low:.1f} to {high:.1f}"}


def _of_weight(study: Row) -> dict[str, str]:
    return {"weight_pairs": str(study["rows"][0]["pairs"])}


def _of_monomodal(study: Row) -> dict[str, str]:
    settled = (f"{100 * part:.1f} % ({name})" for name, part in study["settled"].items())
    return {
        "mono_steps": f"{study['steps']:,}",
        # Four patients, eight slices each, twelve ordered pairs of four phases.
        "epochs": f"{study['steps'] * 16 / (4 * 8 * 12):.0f}",
        "settled": ", ".join(settled),
        "strengths": "; ".join(
            f"{name} " + " or ".join(f"{s:g}" for s in sorted(set(of_patient.values())))
            for name, of_patient in study["strengths"].items()
        ),
        "repair": f"{study['repair_ms']['LU-net']:.0f}",
        "mono_itself": f"{study['self_registration']['LU-net']:.2f}",
    }


def _of_multimodal(study: Row) -> dict[str, str]:
    def listed(measure: str, of_patient: dict[str, float]) -> str:
        return (
            f"{measure} {' or '.join(f'{value:g}' for value in sorted(set(of_patient.values())))}"
        )

    itself = (f"{m} {max(found.values()):.3f}" for m, found in study["self_registration"].items())
    return {
        "chosen": ", ".join(listed(*item) for item in study["weights"].items()),
        "multi_steps": f"{study['steps']:,}",
        "multi_ms": f"{study['milliseconds']:.0f}",
        "itself": ", ".join(itself),
        "longer": study["longer"],
        "best": study["best"],
        "multi_itself": f"{study['self_registration_of_network']:.2f}",
        **{name: f"{value:g}" for name, value in study["new_family"].items()},
        "longest": f"{2 * study['new_family']['wavelength']:g}",
    }


def _claims_of_regularisers(study: Row) -> list[tuple[str, str]]:
    verdicts, folded = [], []
    for test, found in study["claim"].items():
        best = found["best_dice"]
        words = f"{test}: {found['dominated']} of the {found['of']} settings of the others"
        own = best[NEW]["unfolded"]
        others = [v["unfolded"] for n, v in best.items() if n != NEW and v["unfolded"] is not None]
        if own is None:
            words += f"; each of its weights folds {FEW} % of the cells or more"
        else:
            theirs = f"{max(others):.3f}" if others else "none"
            words += (
                f"; of what folds less than {FEW} %, its best Dice is {own:.3f}, theirs {theirs}"
            )
        verdicts.append(words)
        folded.append((test, best["E1 + E2"]["folded_percent_there"]))
    all_of_them = all(found["dominated"] == found["of"] for found in study["claim"].values())
    always = all(percent > 0 for _, percent in folded)
    return [
        (
            "E1 + E2 + E_det dominates the other regularisers (folds no more, Dice no smaller)",
            f"**{'Yes' if all_of_them else 'In part'}**. Dominated: {'. '.join(verdicts)}.",
        ),
        (
            "without the determinant term large displacements fold",
            f"**{'Yes' if always else 'In part'}**. At the weight of its best Dice, E1 + E2 folds "
            + ", ".join(f"{percent:.2f} % ({test})" for test, percent in folded)
            + " of the cells.",
        ),
    ]


def _claims_of_weight(study: Row) -> list[tuple[str, str]]:
    rows = [row for row in study["rows"] if row["preset"] == "default"]
    found = ", ".join(f"{row['dice_guaranteed']:.3f} at {row['lambda']}" for row in rows)
    return [
        (
            "lambda = 60 is a good choice",
            f"One heart and seed are no verdict. Guaranteed Dice, energies (1, 30, 3): {found}.",
        )
    ]


def _compared(ours: list[Row], theirs: list[Row], name: str) -> tuple[str, str]:
    """A verdict on what is better when larger, and the figures."""
    better = difference(ours, theirs, name)
    each = by_patient(ours, theirs, name).values()
    more = sum(value > 0 for value in each)
    tie = better[1] <= 0 <= better[2]
    verdict = "A tie" if tie else "Yes" if better[0] > 0 else "No"
    return verdict, f"{changed(better)}, more in {more} of {len(each)} patients"


def _claims_of_monomodal(study: Row) -> list[tuple[str, str]]:
    rows, ms = study["rows"], study["milliseconds"]
    ours, repair = rows["LU-net"], study["repair_ms"]["LU-net"]
    folded = sum(row["folded_percent"] > 0 for row in ours)
    percent = over_patients(ours, "folded_percent")[0]

    verdict, accuracy = _compared(ours, rows["variational"], "dice_guaranteed")
    _, integrated = _compared(ours, rows["LU-net + integration, E1 + E2"], "dice_guaranteed")
    fit, theirs = (over_patients(rows[n], "relative_ssd")[0] for n in ("LU-net", "variational"))
    claims = [
        (
            "the network is as accurate as the variational hyperelastic model, and far faster",
            f"**{verdict}** in Dice: {accuracy}, by default. The images fit less well: "
            f"relative SSD {fit:.3f} against {theirs:.3f}. {ms['variational'] / ms['LU-net']:.0f} "
            f"times as fast, {ms['variational'] / (ms['LU-net'] + repair):.0f} with the guarantee.",
        ),
        (
            "no folding without an integration layer",
            f"**{'No' if folded else 'Yes'}**, raw: {percent:.3f} % of the cells, {folded} of "
            f"{len(ours)} pairs; guaranteed, none. Dice {integrated}, against the LU-net "
            "with integration and E1 + E2.",
        ),
    ]
    if "VoxelMorph" in rows:
        verdict, found = _compared(ours, rows["VoxelMorph"], "dice_guaranteed")
        tuned = _compared(rows["LU-net, tuned"], rows["VoxelMorph, tuned"], "dice_guaranteed")
        claims.append(
            (
                "(ours) better than VoxelMorph, same images and steps",
                f"**{verdict}** as both come: Dice {found}. **{tuned[0]}** with the energies' "
                f"strengths that were best for the other patients: {tuned[1]}.",
            )
        )
    return claims


def _claims_of_networks(study: Row) -> list[tuple[str, str]]:
    words = (f"{task}: {measure} {better}" for task, measure, better, _ in study["difference"])
    return [
        ("LU-net is better than SN", f"LU-net minus SN, pairs of one patient. {'; '.join(words)}.")
    ]


def _claims_of_multimodal(study: Row) -> list[tuple[str, str]]:
    rows = study["rows"]
    before = over_patients(rows["before"], "end_point_error")[0]
    pls = over_patients(rows["LU-net, pls"], "end_point_error_guaranteed")
    better = difference(rows["LU-net, pls"], rows["before"], "end_point_error_guaranteed")
    words = [f"LU-net, pls: error {before:.2f} to {ranged(pls, 2)} pixels"]
    for name in (study["longer"], study["best"], study["refined"], *study["directly"]):
        found = over_patients(rows[name], "end_point_error_guaranteed")
        part = found[0] / before
        aim = "met" if part <= 0.5 else "missed"
        words.append(f"{name}: {ranged(found, 2)}, {100 * part:.0f} % of that before ({aim})")
    return [
        (
            "parallel level sets register MR to (simulated) CT; half the error was aimed at",
            f"**{'Yes' if better[2] < 0 else 'No'}**. {'. '.join(words)}.",
        )
    ]


def _claims_of_realtime(study: Row) -> list[tuple[str, str]]:
    rows = [row for row in study["rows"] if row["size"] == 256]
    rates = {row["threads"]: 1e3 / (row["LU-net"] + row["repair"]) for row in rows}
    words = ", ".join(f"{rate:.0f} (threads: {number})" for number, rate in rates.items())
    met = max(rates.values()) >= study["wanted_pairs_a_second"]
    return [
        (
            "registration in real time, without folding",
            f"**{'Yes' if met else 'No'}**. LU-net and the guarantee, pairs of 256 x 256 a second: "
            f"{words}.",
        )
    ]


VALUES = {
    "regularisers": _of_regularisers,
    "similarity_weight": _of_weight,
    "monomodal": _of_monomodal,
    "multimodal": _of_multimodal,
}
CLAIMS = {
    "regularisers": _claims_of_regularisers,
    "similarity_weight": _claims_of_weight,
    "monomodal": _claims_of_monomodal,
    "networks": _claims_of_networks,
    "multimodal": _claims_of_multimodal,
    "realtime": _claims_of_realtime,
}


if __name__ == "__main__":
    main()
