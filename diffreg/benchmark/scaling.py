"""The tables of how times grow with the size of an image, and with threads."""

from __future__ import annotations

from collections.abc import Sequence

from diffreg.benchmark.rows import COMPILED, Row, number, shape_of, table, times, usual_rows, words

NOT_COMPARED = "Threads were not compared: this run had one.\n"


def sizes(result: Row) -> str:
    """Ours and the fastest other at every size of one channel, in float32, with smooth fields."""
    parts = [
        _sizes([row for row in usual_rows(result, dimensions) if row["shape"][1] == 1])
        for dimensions in (2, 3)
    ]
    shown = "\n".join(part for part in parts if part)
    if not shown:
        return "Sizes were not compared: this run had one of images, and one of volumes.\n"
    said = (
        "Nanoseconds a voxel, forward and backward: ours, and the fastest other but for "
        f"{COMPILED}, which was timed at the first table's sizes alone (-: none gave the same)."
    )
    return f"{words(said)}\n{shown}"


def _sizes(rows: Sequence[Row]) -> str:
    """Of images, or of volumes; the smallest first."""
    found = dict.fromkeys(tuple(row["shape"]) for row in rows)
    shapes = sorted(found, key=lambda shape: (shape[2:], shape))
    if len(shapes) < 2:
        return ""
    cells: dict[str, dict[tuple[int, ...], str]] = {}
    for row in rows:
        cells.setdefault(row["operator"], {})[tuple(row["shape"])] = _cell(row)
    table_rows = [
        [operator, *(of.get(shape, "-") for shape in shapes)] for operator, of in cells.items()
    ]
    return table(("operator", *map(_label, shapes)), table_rows)


def _cell(row: Row) -> str:
    ns = row["nanoseconds_a_voxel"]
    left_out = ("diffreg", "copy", COMPILED)
    others = [value for name, value in ns.items() if not name.startswith(left_out)]
    return f"{number(ns['diffreg'])}, {number(min(others)) if others else '-'}"


def _label(shape: Sequence[int]) -> str:
    """16 x 128² of (16, 1, 128, 128)."""
    samples, _, *size = shape
    power = {2: "²", 3: "³"}[len(size)]
    one = f"{size[0]}{power}" if len(set(size)) == 1 else " x ".join(map(str, size))
    return f"{samples} x {one}"


def threads(result: Row) -> str:
    """The objective, ours and the faster eager form, beside one thread."""
    if not result["threads"]:
        return NOT_COMPARED
    cells = []
    for shape in dict.fromkeys(tuple(row["shape"]) for row in result["threads"]):
        rows = [row for row in result["threads"] if tuple(row["shape"]) == shape]
        for count in dict.fromkeys(row["threads"] for row in rows):
            ours, eager = (_beside_one(rows, count, name) for name in ("diffreg", "eager"))
            cells.append([shape_of(rows[0]), str(count), *ours, *eager])
    titles = ("the objective, ns a voxel", "threads", "ours", "over one", "best eager", "over one")
    said = "One thread is timed by its own clock, several by the wall's, waits for others included."
    return f"{table(titles, cells)}\n{words(said + _other_run(result['threads']))}"


def _beside_one(rows: Sequence[Row], threads: int, name: str) -> tuple[str, str]:
    """The best of the turns, and how many times as fast as on one thread."""
    one, several = (
        min((row[name] for row in rows if row["threads"] == count and row[name]), default=None)
        for count in (1, threads)
    )
    if one is None or several is None:
        return "-", "-"
    return number(several), times(one / several, 2)


def _other_run(rows: Sequence[Row]) -> str:
    found = {tuple(row["another_run"].values()) for row in rows if "another_run" in row}
    runs = " and ".join(f"commit {commit}, {date}" for commit, date in sorted(found))
    return f" Of another run ({runs}), with the same torch on this processor." if found else ""
