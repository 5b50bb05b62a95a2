"""The page's part on slices: what cardiac.py has written, and where the networks are."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "variational.json"
ABOUT = """\
## Slices of five hearts

Five hearts, 38 slices, end-systole to end-diastole, 112 x 112 voxels round what moves, settings
chosen on the other four patients
([how](variational.md#against-what-you-could-use-instead)). `bench/compare/cardiac.py` ran this, on
another machine: there are no times here. Networks of slices, VoxelMorph's among them, were trained
and tested on the same hearts, each on one that it had not seen:
[study 3 of the paper](../paper/results/README.md#3-mono-modal-160-cardiac-mr-images).
"""
HEAD = "| tool | Dice | worst | diffreg minus it | folded, % (pairs) |\n|---|---|---|---|---|"


def section(path: Path = RESULTS) -> list[str]:
    rows = json.loads(path.read_text())["results"]["variance"]
    lines = [HEAD]
    for row in sorted(rows, key=lambda row: -row["mean"]["dice"]):
        low, high = row["interval"]["dice"]
        cells = [row["method"], f"{row['mean']['dice']:.4f} [{low:.4f}, {high:.4f}]"]
        cells += [f"{min(row['patients']['dice'].values()):.3f}", _difference(row)]
        cells += [f"{row['mean_of_pairs']['folded_percent']:.3f} ({row['folded_pairs']})"]
        lines.append("| " + " | ".join(cells) + " |")
    return [ABOUT, *lines]


def _difference(row: dict) -> str:
    found = row.get("ours_minus_this", {}).get("dice")
    if found is None:
        return ""
    low, high = found["interval"]
    tie = " (tie)" if low <= 0 <= high else ""
    return f"{found['mean']:+.4f} [{low:+.4f}, {high:+.4f}]{tie}"
