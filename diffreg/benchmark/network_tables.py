"""The tables of a training step and of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffreg.benchmark.rows import Row, shape_of, table, words

NO_MEMORY = "Memory was not measured in this run.\n"


def training(result: Row) -> str:
    """Times and memory."""
    rows = result["training"]
    timed = _by_setting("milliseconds", rows, lambda row: row["milliseconds"])
    held = [row for row in rows if "peak_mebibytes" in row]
    title = "MiB held at most, above images, weights and Adam's moments"
    memory = _by_setting(title, held, lambda row: row["peak_mebibytes"]) if held else NO_MEMORY
    return "\n".join(part for part in (timed, memory, _other_runs(rows)) if part)


def _by_setting(title: str, rows: Sequence[Row], of: Callable[[Row], dict[str, float]]) -> str:
    """A column a setting."""
    names = [name for row in rows for name in of(row) if name != "objective"]
    settings = list(dict.fromkeys(names))
    cells = (
        [*_place(row), *(f"{of(row)[name]:,.0f}" if name in of(row) else "-" for name in settings)]
        for row in rows
    )
    return table((title, "threads", *settings), cells)


def _place(row: Row) -> tuple[str, str]:
    half = ", half resolution" if row.get("half_resolution") else ""
    return f"{row['model']}, {shape_of(row)}{half}", str(row["threads"])


def shares(result: Row) -> str:
    """Where the time of a step goes, of the settings that were looked into."""
    looked_into = [
        (*_place(row), name, shares)
        for row in result["training"]
        for name, shares in row.get("shares", {}).items()
    ]
    if not looked_into:
        return ""
    parts = list(dict.fromkeys(part for *_, shares in looked_into for part in shares))
    cells = (
        [*where, *(f"{shares[part]:.1%}" if part in shares else "-" for part in parts)]
        for *where, shares in looked_into
    )
    return "\n" + table(("share of a step", "threads", "setting", *parts), cells)


def prediction(result: Row) -> str:
    """Times and memory, of all settings in a cell."""
    rows = result["prediction"]
    cells = []
    for row in rows:
        ms, held = row["milliseconds_a_pair"], row.get("peak_mebibytes", {})
        timed = ", ".join(f"{name} {value:.1f}" for name, value in ms.items())
        rate = f"{row['pairs_a_second']:.0f}" if "pairs_a_second" in row else "-"
        memory = ", ".join(f"{value:,.0f}" for value in held.values()) or "-"
        cells.append([*_place(row), timed, rate, memory])
    titles = ("network", "threads", "ms a pair", "pairs a second")
    shown = table((*titles, "MiB held at most, above images and weights"), cells)
    missing = "" if any("peak_mebibytes" in row for row in rows) else NO_MEMORY
    return "\n".join(part for part in (shown, missing, _other_runs(rows)) if part)


def _other_runs(rows: Sequence[Row]) -> str:
    """Which figures are of another run than the file's."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for key in ("another_run", "memory_of_another_run"):
        for row in (row for row in rows if key in row):
            whole = f"{_place(row)[0]} (threads: {row['threads']})"
            what = whole if key == "another_run" else "the memory of the others"
            found.setdefault((row[key]["commit"], row[key]["date"]), {})[what] = None
    return "\n".join(
        words(
            f"Of another run (commit {commit}, {date}), with the same torch on this processor: "
            f"{'; '.join(what)}."
        )
        for (commit, date), what in found.items()
    )
