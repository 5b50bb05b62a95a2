"""What became of the paper's claims, in words, from what the studies left."""

from __future__ import annotations

from typing import Any

from measuring import by_patient, difference, of_seed, over_patients, share_of_before
from pages import changed, ranged
from regularisers import FEW, NEW

Row = dict[str, Any]
TUNED = "variational, tuned"


def _claims_of_regularisers(study: Row) -> list[tuple[str, str]]:
    verdicts, folds = [], []
    for test, found in study["claim"].items():
        each = found["each"]
        words = f"{test}: {found['dominated']} of the {found['of']} settings of the others"
        own = each[NEW]["unfolded"]
        others = [v["unfolded"] for n, v in each.items() if n != NEW and v["unfolded"]]
        if own is None:
            words += f"; each of its weights folds {FEW} % of the cells or more"
        else:
            theirs = ranged(max(others)) if others else "none"
            words += f"; of what folds less than {FEW} %, its best Dice is {ranged(own)}, theirs "
            words += theirs
        verdicts.append(words)
        without, new = (
            f"{low:.3f} to {high:.3f} %"
            for low, high in (each["E1 + E2"]["folded"], each[NEW]["folded"])
        )
        folds.append(f"{test}: {without} of the cells, with it {new}")
    all_of_them = all(found["dominated"] == found["of"] for found in study["claim"].values())
    largest = study["claim"]["disc to C"]["each"]
    always = largest["E1 + E2"]["folded"][0] > 1 and largest[NEW]["folded"][0] < FEW
    return [
        (
            "E1 + E2 + E_det dominates the other regularisers (folds no more, Dice no smaller)",
            f"**{'Yes' if all_of_them else 'In part'}** [range of the seeds]. Dominated: "
            f"{'. '.join(verdicts)}.",
        ),
        (
            "without the determinant term large displacements fold",
            f"**{'Yes' if always else 'In part'}**, where they are large (disc to C: more than 1 % "
            "at every weight without, hardly any at the heavier ones with it). Where they are "
            "smaller a heavier weight does nearly as well. Between the weights that fold least and "
            f"most, {'; '.join(folds)}.",
        ),
    ]


def _claims_of_weight(study: Row) -> list[tuple[str, str]]:
    rows = [row for row in study["rows"] if row["preset"] == "default"]
    found = ", ".join(f"{ranged(r['dice_guaranteed_interval'])} at {r['lambda']}" for r in rows)
    return [
        (
            "lambda = 60 is a good choice",
            "One heart and seed are no verdict. Guaranteed Dice [over the pairs], energies "
            f"(1, 30, 3): {found}.",
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
    ours = rows["LU-net"]

    def against(name: str, other: str = "LU-net") -> tuple[str, str]:
        return _compared(rows[other], rows[name], "dice_guaranteed")

    verdict, accuracy = against("variational")
    equal = {"A tie": "Not shown to differ", "Yes": "Yes, better", "No": "No, worse"}[verdict]
    tuned = f" Against it, tuned: {against(TUNED)[1]}." if TUNED in rows else ""
    fit, theirs = (over_patients(rows[n], "relative_ssd")[0] for n in ("LU-net", "variational"))
    integrated = "LU-net + integration, E1 + E2"
    claims = [
        (
            "the network is as accurate as the variational hyperelastic model, and far faster",
            f"**{equal}** from it by default, in Dice: {accuracy}.{tuned} The images fit less "
            f"well: relative SSD {fit:.3f} against {theirs:.3f}. "
            f"{ms['variational'] / ms['LU-net']:.0f} times as fast, the guarantee apart.",
        ),
        (
            "no folding without an integration layer",
            f"**{'Yes' if _folded(ours).startswith('0 ') else 'Not quite'}**, raw: "
            f"{_folded(ours)} fold, {ranged(over_patients(ours, 'folded_percent'))} % of the "
            f"cells; guaranteed, none. With integration and E1 + E2 {_folded(rows[integrated])} "
            f"fold; Dice, ours minus that: {against(integrated)[1]}.",
        ),
    ]
    if "VoxelMorph" in rows:
        verdict, found = against("VoxelMorph")
        seeds = (
            changed(difference(of_seed(ours, s), of_seed(rows["VoxelMorph"], s), "dice_guaranteed"))
            for s in sorted({row["seed"] for row in ours})
        )
        both = against("VoxelMorph, tuned", "LU-net, tuned")
        claims.append(
            (
                "(ours) better than VoxelMorph, same images and steps",
                f"**{verdict}** as both come: Dice {found}; seed by seed {'; '.join(seeds)}. "
                f"**{both[0]}** with the energies' strengths that were best for the other "
                f"patients: {both[1]}. VoxelMorph, raw: {_folded(rows['VoxelMorph'])} fold.",
            )
        )
    return claims


def _folded(rows: list[Row]) -> str:
    return f"{sum(row['folded_percent'] > 0 for row in rows)} of {len(rows)} pairs"


def _claims_of_networks(study: Row) -> list[tuple[str, str]]:
    better = 0
    words = []
    for found in study["difference"]:
        _, low, high = found["better"]
        better += low > 0 if found["measure"] == "Dice" else high < 0
        words.append(f"{found['pairs']}: {found['measure']} {changed(found['better'])}")
    of = len(study["difference"])
    verdict = "Yes" if better == of else f"In {better} of {of} tasks"
    return [
        (
            "LU-net is better than SN",
            f"**{verdict}**. LU-net minus SN [over pairs of one patient]. {'; '.join(words)}.",
        )
    ]


def _claims_of_multimodal(study: Row) -> list[tuple[str, str]]:
    rows, error = study["rows"], "end_point_error_guaranteed"
    pls = "LU-net, pls"
    better = difference(rows[pls], rows["before"], error)
    names = [pls, *(study[n] for n in ("longer", "control", "best", "refined")), *study["directly"]]
    words, met = [], []
    for name in dict.fromkeys(names):
        part = share_of_before(rows[name], rows["before"], error)
        words.append(f"{name} {ranged(over_patients(rows[name], error), 2)} ({100 * part:.0f} %)")
        met += [name] if part <= 0.5 else []
    before = ranged(over_patients(rows["before"], error), 2)
    return [
        (
            "parallel level sets register MR to (simulated) CT; half the error was aimed at",
            f"**{'Yes' if better[2] < 0 else 'No'}**, they bring the error down. **Halved** by "
            f"{' and '.join(met) or 'none'}. Error before {before} pixels; {'; '.join(words)}.",
        )
    ]


def _claims_of_realtime(study: Row) -> list[tuple[str, str]]:
    rows = [row for row in study["rows"] if row["size"] == 256]

    def rates(repair: str) -> str:
        return ", ".join(
            f"{1e3 / (row['LU-net'] + row[repair]):.0f} (threads: {row['threads']})" for row in rows
        )

    met = (
        max(1e3 / (row["LU-net"] + row["repair"]) for row in rows) >= study["wanted_pairs_a_second"]
    )
    return [
        (
            "registration in real time, without folding",
            f"**{'Yes' if met else 'No'}**. LU-net and the guarantee, pairs of 256 x 256 a second: "
            f"{rates('repair')} where nothing folds, {rates('repair_of_folds')} where "
            f"{rows[0]['folded_cells']} cells do.",
        )
    ]


CLAIMS = {
    "regularisers": _claims_of_regularisers,
    "similarity_weight": _claims_of_weight,
    "monomodal": _claims_of_monomodal,
    "networks": _claims_of_networks,
    "multimodal": _claims_of_multimodal,
    "realtime": _claims_of_realtime,
}
