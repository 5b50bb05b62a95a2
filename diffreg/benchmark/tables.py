"""The results in Markdown, made from the JSON alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
BOTH, COMPILED = "forward + backward", "torch.compile"


def markdown(result: Row) -> str:
    """Every table of a run, headline first."""
    parts = [
        "# Benchmark\n",
        _conditions(result),
        headline(result),
        _section("All operators", _everything(result)),
        _section("A training step", _training(result)),
        _section("Prediction", _prediction(result)),
    ]
    if "overhead" in result:
        parts.append(_section("What a call costs", _overhead(result)))
    if result.get("second_thread"):
        parts.append(_section("A second thread", _second_thread(result)))
    if "second_derivatives" in result:
        parts.append(_section("Second derivatives", _second_derivatives(result)))
    return "\n".join(parts)


def headline(result: Row) -> str:
    """Forward and backward at the headline shapes, images, then volumes."""
    parts = (_headline(headline_rows(result)), volumes(result))
    return "\n".join(part for part in parts if part)


def volumes(result: Row) -> str:
    """Those of the headline, where torch.compile's figures come from, and what there is none of."""
    rows = headline_rows(result, 3)
    if not rows:
        return ""
    earlier = {tuple(row["compiled_earlier"].values()) for row in rows if "compiled_earlier" in row}
    lines = ["Volumes: memory that is freed stays in the process."]
    if earlier:
        runs = " and ".join(f"commit {commit}, {date}" for commit, date in sorted(earlier))
        lines.append(
            f"torch.compile was timed in another run ({runs}), with the "
            "same torch on this processor."
        )
    absent = [row["operator"] for row in rows if COMPILED not in row["speedup"]]
    if absent:
        lines.append(
            f"Not timed under torch.compile, with this torch on this processor: {', '.join(absent)}"
            " (`python -m diffreg.benchmark.compiled`)."
        )
    words = textwrap.fill(" ".join(lines), 120, break_on_hyphens=False)
    return f"{_headline(rows)}\n{words}\n"


def _headline(found: Sequence[Row]) -> str:
    if not found:
        return ""
    rows = []
    for row in found:
        ns, speedup = row["nanoseconds_a_voxel"], row["speedup"]
        others = (
            f"{name} {times(value)}"
            for name, value in speedup.items()
            if name not in ("best eager", COMPILED)
        )
        rows.append(
            [
                row["operator"],
                shape_of(row),
                f"{ns['diffreg']:.3g}",
                f"{row['share_of_copy']:.0%}",
                times(speedup["best eager"]),
                times(speedup.get(COMPILED)),
                ", ".join(f"{count:.0f}" for count in row["bytes_allocated_a_voxel"].values()),
                ", ".join(others),
            ]
        )
    titles = (
        *("operator", "images" if len(found[0]["shape"]) == 4 else "volumes", "ns a voxel"),
        *("of a copy", "over best eager", "over torch.compile"),
        *("bytes allocated a voxel, ours and eager", "over others"),
    )
    return _table(titles, rows)


def headline_rows(result: Row, dimensions: int = 2) -> list[Row]:
    """Smooth fields in float32, at the shapes that each operator was measured on first: three of
    images, and one of volumes, with memory kept."""
    images = dimensions == 2
    rows = [
        row
        for row in result["operators"]
        if row["direction"] == BOTH
        and row["dtype"] == "float32"
        and row["field"] in (None, "smooth")
        and len(row["shape"]) == 2 + dimensions
        and row["memory"] == ("given back" if images else "kept")
    ]
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))[: 3 if images else 1]
    return [row for row in rows if tuple(row["shape"]) in shapes]


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def shape_of(row: Row) -> str:
    return " x ".join(map(str, row["shape"]))


def _conditions(result: Row) -> str:
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['cpu_variant']}, one thread"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    absent = result["not_installed"]
    lines = [
        f"{where}; commit {machine['commit']}; load {machine['load']} before; {versions}.",
        f"Not installed, so not compared: {', '.join(absent)}." if absent else "",
        result["method"],
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _everything(result: Row) -> str:
    rows = []
    for row in result["operators"]:
        ns = row["nanoseconds_a_voxel"]
        eager = [value for name, value in ns.items() if name.startswith("eager")]
        others = [f"{name} {times(v)}" for name, v in row["speedup"].items() if v is not None]
        kept = "memory kept" if row["memory"] == "kept" else None
        rows.append(
            [
                row["operator"],
                row["direction"],
                ", ".join(filter(None, (shape_of(row), row["dtype"], row["field"], kept))),
                f"{ns['diffreg']:.3g} ({row['spread']['diffreg']:.0%})",
                f"{min(eager):.3g}" if eager else "-",
                ", ".join(others),
                f"{row['gigabytes_a_second']:.1f}",
                ", ".join(str(count) for count in row["operators"].values()),
                ", ".join(row["disagrees"]) or "-",
            ]
        )
    titles = ("operator", "", "inputs", "ns a voxel (spread)", "eager", "times as fast as", "GB/s")
    return _table((*titles, "operators called, ours and eager", "other results"), rows)


def _training(result: Row) -> str:
    rows = []
    for row in result["training"]:
        ms = row["milliseconds"]
        rows.append(
            [
                f"{row['model']}, {shape_of(row)}",
                str(row["threads"]),
                *(f"{ms[name]:.0f}" if name in ms else "-" for name in _settings(result)),
            ]
        )
    return _table(("milliseconds", "threads", *_settings(result)), rows) + _shares(result)


def _shares(result: Row) -> str:
    """Where the time of a step goes, of the settings that were looked into."""
    looked_into = [
        (f"{row['model']}, {shape_of(row)}", str(row["threads"]), name, shares)
        for row in result["training"]
        for name, shares in row.get("shares", {}).items()
    ]
    if not looked_into:
        return ""
    parts = list(dict.fromkeys(part for *_, shares in looked_into for part in shares))
    rows = [
        [*where, *(f"{shares[part]:.1%}" if part in shares else "-" for part in parts)]
        for *where, shares in looked_into
    ]
    return "\n" + _table(("share of a step", "threads", "setting", *parts), rows)


def _settings(result: Row) -> list[str]:
    names = [name for row in result["training"] for name in row["milliseconds"]]
    return [name for name in dict.fromkeys(names) if name != "objective"]


def _prediction(result: Row) -> str:
    rows = []
    for row in result["prediction"]:
        ms = row["milliseconds_a_pair"]
        values = ", ".join(f"{name} {value:.1f}" for name, value in ms.items())
        rate = f"{row['pairs_a_second']:.0f}" if "pairs_a_second" in row else "-"
        rows.append([f"{row['model']}, {shape_of(row)}", str(row["threads"]), values, rate])
    return _table(("network", "threads", "ms a pair", "pairs a second"), rows)


def _overhead(result: Row) -> str:
    columns = ("microseconds", "bare", "added", "engine")
    rows = [[row["operator"], *(f"{row[c]:.1f}" for c in columns)] for row in result["overhead"]]
    titles = ("forward + backward, us", "ours", "the bare operator", "added", "torch.mul")
    return _table(titles, rows)


def _second_thread(result: Row) -> str:
    lines = []
    for shape in dict.fromkeys(tuple(row["shape"]) for row in result["second_thread"]):
        rows = [row for row in result["second_thread"] if tuple(row["shape"]) == shape]
        one, two = (min(r["diffreg"] for r in rows if r["threads"] == n) for n in (1, 2))
        lines.append(
            f"The objective at {shape_of(rows[0])}: {one:.2f} ns a voxel on one thread, "
            f"{two:.2f} on two, {one / two:.2f}x.\n"
        )
    return "\n".join(lines)


def _second_derivatives(result: Row) -> str:
    """An operator's own, of images and of volumes, in one row."""
    found: dict[str, dict[int, float]] = {}
    for row in result["second_derivatives"]:
        bytes_of = found.setdefault(row["operator"], {})
        bytes_of[len(row["shape"]) - 2] = row["bytes_allocated_a_voxel"]
    rows = [[name, *(f"{of[d]:.0f}" for d in (2, 3))] for name, of in found.items()]
    titles = ("bytes allocated a voxel, gradient of a gradient", "images", "volumes")
    return _table(titles, rows)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
