"""Puts results/README.md together: page.md, filled with what the studies left in results.

python paper/page.py
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from claims import CLAIMS
from pages import PAGES

from diffreg.system.atomic import replacing

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
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    with replacing(PAGES / "README.md") as temporary:
        temporary.write_text(page())


def page() -> str:
    """The page as the files of results make it; a study that has not been run leaves dashes."""
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
    return {"reach": f"{low:.1f} to {high:.1f}"}


def _of_weight(study: Row) -> dict[str, str]:
    return {"weight_pairs": str(study["rows"][0]["pairs"])}


def _of_monomodal(study: Row) -> dict[str, str]:
    settled = (f"{100 * part:.1f} % ({name})" for name, part in study["settled"].items())
    ours = study["rows"]["LU-net"]
    kept = [row["repair_ms"] for row in ours if not row["moved_voxels"]]
    repaired = [row["repair_ms"] for row in ours if row["moved_voxels"]]
    return {
        "mono_steps": f"{study['steps']:,}",
        # Four patients, eight slices each, twelve ordered pairs of four phases.
        "epochs": f"{study['steps'] * 16 / (4 * 8 * 12):.0f}",
        "settled": ", ".join(settled),
        "strengths": "; ".join(
            f"{name} " + " or ".join(f"{s:g}" for s in sorted(set(of_patient.values())))
            for name, of_patient in study["strengths"].items()
        ),
        "certified": f"{np.median(kept):.1f}",
        "repair": f"{np.median(repaired):.0f}" if repaired else "-",
        "repair_most": f"{max(repaired):.0f}" if repaired else "-",
        "mono_itself": f"{study['self_registration']['LU-net']:.2f}",
    }


def _of_multimodal(study: Row) -> dict[str, str]:
    def listed(measure: str, of_patient: dict[str, float]) -> str:
        return (
            f"{measure} {' or '.join(f'{value:g}' for value in sorted(set(of_patient.values())))}"
        )

    itself = (f"{m} {max(found.values()):.3f}" for m, found in study["self_registration"].items())
    truth = study["rows"]["at the true field"]
    return {
        "chosen": ", ".join(listed(*item) for item in study["weights"].items()),
        "multi_steps": f"{study['steps']:,}",
        "itself": ", ".join(itself),
        **{name: study[name] for name in ("longer", "control", "best")},
        "truths_that_fold": str(sum(row["folded_percent"] > 0 for row in truth)),
        "truths": str(len(truth)),
        "multi_itself": f"{study['self_registration_of_network']:.1f}",
        **{name: f"{value:g}" for name, value in study["new_family"].items()},
        "longest": f"{2 * study['new_family']['wavelength']:g}",
    }


def _of_realtime(study: Row) -> dict[str, str]:
    rows = [row for row in study["rows"] if row["size"] == 256]

    def each(name: str, digits: int) -> str:
        return " and ".join(f"{row[name]:.{digits}f}" for row in rows)

    return {
        "determinants": each("determinants", 1),
        "border": each("border", 1),
        "repair_256": each("repair_of_folds", 0),
        "folded_256": str(rows[0]["folded_cells"]),
    }


VALUES = {
    "regularisers": _of_regularisers,
    "similarity_weight": _of_weight,
    "monomodal": _of_monomodal,
    "multimodal": _of_multimodal,
    "realtime": _of_realtime,
}


if __name__ == "__main__":
    main()
