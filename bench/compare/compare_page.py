"""docs/compare.md and its pictures, and bench/results/compare.json, from what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import slices
from compare_plot import plot
from registering import BEGUN, NETWORKS, OURS, SETTINGS, VOXELMORPH
from sets import GROUPS, PLAN
from summary import FEWEST, compared, summaries, told, with_kept

from diffreg.benchmark.run import machine
from diffreg.registration._json import write_json

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
US = "diffreg"
POINTS = {"tre": "TRE, mm", "end_point_error": "error, voxels"}
NOTHING = {"identity": "no registration at all"}
PICTURES = {
    "compare.png": ("brain2mm", "brain2mm_simulated", "cardiac3d"),
    "compare_across.png": ("prostate_mrus",),
}
ABOUT = f"""\
# Compared with what you could use instead

Labelled volumes and slices registered by diffreg and by other tools, each with settings that it
documents. This page is written by

    make compare DATA=DIR
    make compare DATA=DIR CHECKPOINT=run/best.pt VOXELMORPH=voxelmorph/best.pt

DIR is the folder of [data.md](data.md); without it there is nothing to compare, and the command
says so. The other tools are installed into `.venv-peers`, in the versions of
`bench/compare/constraints.txt`. All of it takes some four hours of one core, cheap tools first;
stopped at any moment it goes on where it was, and rows that are not run again stay.
CHECKPOINT is a
[network of volumes](training.md#heads-in-3-d) for the heads at 2 mm, VOXELMORPH one of
[VoxelMorph's](#settings). What begins with "diffreg lunet-" are the networks that
[ship with diffreg](data.md#what-ships-and-what-does-not), on people whom they have not seen;
"refined" is `--refine 10`, ten steps on from a network's result. "diffreg from" another tool is
`--start` with what that tool found, and 20 iterations; what both take is told.

Every tool gets the same two files on one grid, starts from the identity, where no other is named,
and runs in a fresh process on one thread. One code reads every displacement as voxels (a head
warped by it and by the tool itself differ by .0011 of 255 grey levels at most, four voxels and
more from the border; greedy writes whole levels), takes the labels at the nearest voxel, and
measures:

- **Dice**: mean over people (the one whose image is fixed), in brackets its 95 % bootstrap
  interval; of fewer than {FEWEST} people there is none. **Worst** is the pair with the lowest.
- **diffreg minus it**: over the people that both have, which is how to compare tools that were run
  on different numbers of pairs; where its interval holds 0 it is a tie. "diffreg" is `diffreg
  register` as it is; "fast" and "long" are other numbers of iterations.
- **SDlogJ**: standard deviation of the logarithm of the determinant, how unevenly it bends.
- **Folded**: cells of the displacement as the tool gives it, by the [certificate](folding.md),
  percent, and in how many pairs.
- **CPU s** of the process from files to file, in brackets without what it imports (of diffreg
  without torch alone); **MB**: its largest resident size. Medians, on a machine with other work,
  where a tenth says nothing.
"""

HOW = """\
## Settings

What a tool documents for such images, or its defaults; elastix has what its model zoo has for heads
of different people (Par0035). Not blind are these, all of heads at 2 mm: demons with sigma .7,
FireANTs with sigma .25 and ConvexAdam's three settings were found on the first of the ten pairs,
greedy's long run, dipy's iterations and SyNOnly's with CC were known to be good; diffreg's
weights have seen three of the pairs, and the hearts. Those across contrasts have seen the same
three pairs in this and two other simulated contrasts, the pair of the abdomen and every fourth
slice of MR / simulated CT; what keeps them from prostates, all of those
([how](variational.md#two-contrasts-what-was-tried)). How lunet-mr-ct was trained was decided after
a look at all people of its set. Nothing was tuned at 1 mm.
Elsewhere than on heads elastix has its defaults: its setting for heads folded half of the first
prostate. Demons and measures of one contrast are left out across modalities, but for SyNOnly CC on
slices, and with demons SimpleITK: its B-splines by mutual information, which elastix has too, were
not run. VoxelMorph is on what its network was trained for, heads at 2 mm in one contrast.

On thin stacks FireANTs stops: it gives its field 32 planes at least, and the images of the finest
scale those that they have. "2 levels" are its scales 4 and 2, where it resizes both; that is half
the resolution within the planes, and on the first two hearts was no worse than a third scale of
1.01. On slices demons symmetric and SyNOnly CC radius 4 have the settings that
`bench/compare/cardiac.py` chose for this heart on the four others; the other tools have those that
they have on volumes. ConvexAdam takes volumes alone.

VoxelMorph's package brings no trained network. Its architecture (features 16, 32, 32, 32) was
trained here on the people that diffreg's network was trained on, by its own objective (local
correlation in windows of 9^3, lambda = 1 for the squared gradient, here of the displacement), for
twice as many steps; `diffreg register` runs it:

    cp bench/compare/voxelmorph_heads.toml .     # beside heads/
    PYTHONPATH=examples diffreg train voxelmorph_heads.toml training.out=voxelmorph
"""


def write_page(
    runs: Iterable[Row],
    left_out: Mapping[str, str],
    docs: Path = ROOT / "docs",
    results: Path = ROOT / "bench" / "results",
) -> None:
    """compare.md and its pictures in `docs`, compare.json in `results`.

    Rows that stand there, were measured on the same processor and have not been run again stay.
    """
    runs, file = list(runs), results / "compare.json"
    about: Row = {"machine": machine("cpu") | {"processor": runs[-1]["processor"]}}
    groups = summaries(runs, SETTINGS)
    before = json.loads(file.read_text()) if file.exists() else None
    if before and before["machine"]["processor"] == about["machine"]["processor"]:
        groups = with_kept(groups, before["groups"], SETTINGS)
    for rows in groups.values():
        compared(rows, (US,))
    own = [row for rows in groups.values() for row in rows if ours(row)]
    about["commits"] = sorted({commit for row in own for commit in row["commits"]})
    write_json(file, {**about, "left_out": left_out, "groups": groups})
    drawn = [name for name, wanted in PICTURES.items() if plot(groups, wanted, docs / name)]
    (docs / "compare.md").write_text(page(groups, about, left_out, drawn))


def page(groups: Row, about: Row, left_out: Mapping[str, str], drawn: list[str]) -> str:
    where = about["machine"]
    parts = [
        ABOUT,
        f"{where['processor']}; diffreg of commits {', '.join(about['commits']) or 'unknown'}.",
        "",
    ]
    parts += headline(groups)
    for group in (group for group in GROUPS if group in groups):
        rows = sorted(groups[group], key=lambda row: -row["mean"].get("dice", -1))
        parts += ["", f"## {GROUPS[group].title}", "", GROUPS[group].about, "", *verdict(rows)]
        parts += [
            f"\n![Dice, cost{' and landmarks' if GROUPS[group].landmarks else ''}, by tool]({name})"
            for name in drawn
            if PICTURES[name][0] == group
        ]
        parts += ["", *table(rows), *failures(rows)]
    parts += [
        "",
        *slices.section(),
        "",
        HOW,
        *settings(groups),
        *to_come(groups),
        *absent(left_out),
    ]
    return "\n".join(parts) + "\n"


def headline(groups: Row) -> list[str]:
    """diffreg and, of each set, the other tool that comes off best beside it."""
    head = ["set", "pairs", "diffreg: Dice", "worst", "folded, %", "CPU s"]
    head += ["the best other", "Dice", "worst", "folded, %", "CPU s", "diffreg minus it"]
    lines = [line_of(head), line_of(["---"] * len(head))]
    for group in (group for group in GROUPS if group in groups):
        us = next((row for row in groups[group] if row["method"] == US and row["pairs"]), None)
        if us is None:
            continue
        enough = [r for r in rivals(groups[group]) if r["pairs"] >= min(FEWEST, us["pairs"])]
        if enough:
            best = min(enough, key=lambda row: row["minus_this"][US]["dice"]["mean"])
            pairs = f" ({best['pairs']} pairs)" if best["pairs"] != us["pairs"] else ""
            cells = [GROUPS[group].title, str(us["pairs"]), *short(us)]
            cells += [best["label"] + pairs, *short(best), difference(best, "dice")]
            lines.append(line_of(cells))
    return lines if len(lines) > 2 else []


def rivals(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["pairs"] and not ours(row) and row["method"] not in NOTHING]


def ours(row: Row) -> bool:
    networks = (name for name in NETWORKS if name != VOXELMORPH)
    return row["method"] in (*OURS, *BEGUN, *networks)


def short(row: Row) -> list[str]:
    return [spread(row, "dice"), worst(row), folds(row), cost(row)]


def verdict(rows: list[Row]) -> list[str]:
    """diffreg against every other tool, in words: above, a tie, below, in this order."""
    lines = []
    for measure, name, more in (("dice", "Dice", True), ("tre", "TRE", False)):
        said: dict[str, list[str]] = {"above": [], "tie": [], "below": []}
        for row in (row for row in rows if row["pairs"] and not ours(row)):
            found = told((row["minus_this"].get(US) or {}).get(measure), more)
            if found:
                said[found].append(NOTHING.get(row["method"], row["label"]))
        words = {"above": "better than", "tie": "a tie with", "below": "worse than"}
        parts = [f"{words[how]} {', '.join(said[how])}" for how in said if said[how]]
        if parts:
            lines.append(f"- **{name}** of diffreg: {'; '.join(parts)}.")
    return lines


def table(rows: list[Row]) -> list[str]:
    points = [name for name in POINTS if any(name in row["mean"] for row in rows)]
    head = ["tool", "pairs", "Dice", "worst", "diffreg minus it"]
    for name in points:
        head += [POINTS[name], "diffreg minus it"]
    head += ["HD95, mm", "SDlogJ", "folded, %", "CPU s", "MB"]
    lines = [line_of(head), line_of(["---"] * len(head))]
    for row in (row for row in rows if row["pairs"]):
        cells = [row["label"], str(row["pairs"]), spread(row, "dice")]
        cells += [worst(row), difference(row, "dice")]
        for name in points:
            cells += [spread(row, name, 2), difference(row, name, 2)]
        cells += [plain(row, "hd95", 2), plain(row, "sd_log_j", 3), folds(row), cost(row)]
        cells.append(f"{row['median']['peak_mb']:.0f}" if "peak_mb" in row["median"] else "")
        lines.append(line_of(cells))
    return lines


def worst(row: Row) -> str:
    return "" if row["worst"] is None else f"{row['worst']:.3f}"


def difference(row: Row, measure: str, digits: int = 4) -> str:
    found = (row["minus_this"].get(US) or {}).get(measure)
    if found is None:
        return ""
    if found["interval"] is None:
        return f"{found['mean']:+.{digits}f} (people: {found['people']})"
    low, high = found["interval"]
    tie = " (tie)" if told(found) == "tie" else ""
    return f"{found['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{tie}"


def failures(rows: list[Row]) -> list[str]:
    lines = [
        f"- {row['label']} stopped on {count} of {row['pairs'] + sum(row['errors'].values())} "
        f"pairs: `{error}`"
        for row in rows
        for error, count in row["errors"].items()
    ]
    return ["", *lines] if lines else []


def settings(groups: Row) -> list[str]:
    found: dict[str, tuple[str, str]] = {}
    for row in (row for rows in groups.values() for row in rows):
        found[row["method"]] = row["version"] or found.get(row["method"], ("",))[0], row["setting"]
    return [
        f"- {method} ({version}): `{setting or 'its defaults'}`"
        for method, (version, setting) in found.items()
        if version
    ]


def to_come(groups: Row) -> list[str]:
    """What of the plan has not been run, on any pair or on some; networks may have seen those."""
    tried = {
        (group, row["method"]): row["pairs"] + sum(row["errors"].values())
        for group, rows in groups.items()
        for row in rows
    }
    most = {group: max(tried[group, row["method"]] for row in groups[group]) for group in groups}
    waiting: dict[str, list[str]] = {}
    for group, method, pairs in PLAN:
        names = waiting.setdefault(GROUPS[group].title, [])
        wanted = min(most.get(group, 0), pairs or most.get(group, 0))
        if (group, method) not in tried:
            names += [] if method in names else [method]
        elif tried[group, method] < wanted and method not in NETWORKS:
            names.append(f"{method} (run on {tried[group, method]} of {wanted} pairs)")
    return [f"- not run so far, {on}: {', '.join(names)}" for on, names in waiting.items() if names]


def absent(left_out: Mapping[str, str]) -> list[str]:
    return [f"- not installed here, and left out: {name} ({why})" for name, why in left_out.items()]


def spread(row: Row, measure: str, digits: int = 4) -> str:
    if measure not in row["mean"]:
        return ""
    limits = row["interval"][measure]
    between = f" [{limits[0]:.{digits}f}, {limits[1]:.{digits}f}]" if limits else ""
    return f"{row['mean'][measure]:.{digits}f}{between}"


def plain(row: Row, measure: str, digits: int) -> str:
    if measure not in row["mean"]:
        return ""
    value = row["mean"][measure]
    return f"{value:.{digits}f}" if value == value else "a label lost"


def folds(row: Row) -> str:
    name = "folded_certificate_percent"
    if name not in row["mean"]:
        return "not measured"
    return f"{row['mean'][name]:.2g} ({row['folded_pairs'][name]})"


def cost(row: Row) -> str:
    found = [
        f"{row['median'][name]:.1f}" for name in ("cpu_s", "search_s") if name in row["median"]
    ]
    return f"{found[0]} ({found[1]})" if len(found) == 2 else ""


def line_of(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
