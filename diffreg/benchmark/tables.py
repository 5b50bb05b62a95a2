"""The results in Markdown and as a plot, made from the JSON alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from diffreg._extras import require

Row = dict[str, Any]
BOTH = "forward + backward"


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
    return "\n".join(parts)


def headline(result: Row) -> str:
    """Forward and backward at the headline shapes; README shows it."""
    rows = []
    for row in _headline_rows(result):
        ns, speedup = row["nanoseconds_a_pixel"], row["speedup"]
        others = (
            f"{name} {_times(value)}"
            for name, value in speedup.items()
            if name not in ("best eager", "torch.compile")
        )
        rows.append(
            [
                row["operator"],
                _shape(row),
                f"{ns['diffreg']:.3g}",
                f"{row['share_of_copy']:.0%}",
                _times(speedup["best eager"]),
                _times(speedup.get("torch.compile")),
                ", ".join(f"{count:.0f}" for count in row["bytes_allocated_a_pixel"].values()),
                ", ".join(others),
            ]
        )
    titles = (
        *("operator", "images", "ns a pixel", "of a copy", "over best eager", "over torch.compile"),
        *("bytes allocated a pixel, ours and eager", "over others"),
    )
    return _table(titles, rows)


def _headline_rows(result: Row) -> list[Row]:
    """Smooth fields in float32, at the shapes that each operator was measured on first."""
    rows = [
        row
        for row in result["operators"]
        if row["direction"] == BOTH
        and row["dtype"] == "float32"
        and row["field"] in (None, "smooth")
    ]
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))[:3]
    return [row for row in rows if tuple(row["shape"]) in shapes]


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def _shape(row: Row) -> str:
    samples, channels, height, width = row["shape"]
    return f"{samples} x {channels} x {height} x {width}"


def _conditions(result: Row) -> str:
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['cpu_variant']}, one thread"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    absent = result["not_installed"]
    lines = [
        f"{where}; commit {machine['commit']}; load {machine['load']} before; {versions}.",
        f"Not installed, so not compared: {', '.join(absent)}." if absent else "",
        "Interleaved runs, medians; the spread is that of the middle half. Best eager: the faster "
        "of two tuned forms in PyTorch, their constants made beforehand, half types in float32; "
        "torch.compile is of the first form. A candidate that gives other results has no time. "
        "The share of a copy is the fewest bytes that the work has to move, over the time (on a "
        "GPU that in a CUDA graph), beside a copy of the same run.",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _everything(result: Row) -> str:
    rows = []
    for row in result["operators"]:
        ns = row["nanoseconds_a_pixel"]
        eager = [value for name, value in ns.items() if name.startswith("eager")]
        others = [f"{name} {_times(v)}" for name, v in row["speedup"].items() if v is not None]
        rows.append(
            [
                row["operator"],
                row["direction"],
                f"{_shape(row)}, {row['dtype']}" + (f", {row['field']}" if row["field"] else ""),
                f"{ns['diffreg']:.3g} ({row['spread']['diffreg']:.0%})",
                f"{min(eager):.3g}" if eager else "-",
                ", ".join(others),
                f"{row['gigabytes_a_second']:.1f}",
                ", ".join(str(count) for count in row["operators"].values()),
                ", ".join(row["disagrees"]) or "-",
            ]
        )
    titles = ("operator", "", "inputs", "ns a pixel (spread)", "eager", "times as fast as", "GB/s")
    return _table((*titles, "operators called, ours and eager", "other results"), rows)


def _training(result: Row) -> str:
    rows = []
    for row in result["training"]:
        ms = row["milliseconds"]
        rows.append(
            [
                f"{row['model']}, {_shape(row)}",
                str(row["threads"]),
                *(f"{ms[name]:.0f}" if name in ms else "-" for name in _settings(result)),
            ]
        )
    return _table(("milliseconds", "threads", *_settings(result)), rows) + _shares(result)


def _shares(result: Row) -> str:
    """Where the time of a step goes, of the settings that were looked into."""
    looked_into = [
        (f"{row['model']}, {_shape(row)}", str(row["threads"]), name, shares)
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
        rows.append([f"{row['model']}, {_shape(row)}", str(row["threads"]), values, rate])
    return _table(("network", "threads", "ms a pair", "pairs a second"), rows)


def _overhead(result: Row) -> str:
    columns = ("microseconds", "bare", "added", "engine")
    rows = [[row["operator"], *(f"{row[c]:.1f}" for c in columns)] for row in result["overhead"]]
    titles = ("forward + backward, us", "ours", "the bare operator", "added", "torch.mul")
    return _table(titles, rows)


def _second_thread(result: Row) -> str:
    best = {
        number: min(r["diffreg"] for r in result["second_thread"] if r["threads"] == number)
        for number in (1, 2)
    }
    return (
        f"The objective at 1 x 1 x 512 x 512: {best[1]:.2f} ns a pixel on one thread, "
        f"{best[2]:.2f} on two, {best[1] / best[2]:.2f}x.\n"
    )


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plot(result: Row) -> bytes:
    """How many times as fast as each candidate, forward and backward, as a PNG file.

    One bar a candidate and operator, on a logarithmic axis; of several shapes the second.
    """
    require("matplotlib", "plots")
    from matplotlib.figure import Figure

    rows = _headline_rows(result)
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    shown = shapes[min(1, len(shapes) - 1)]
    rows = [row for row in rows if tuple(row["shape"]) == shown]
    names = list(dict.fromkeys(name for row in rows for name in row["speedup"]))
    bars: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    ticks, place = [], 0.0
    for row in rows:
        found = [(name, value) for name, value in row["speedup"].items() if value]
        ticks.append(place - (len(found) - 1) / 2)
        for name, value in found:
            bars[name].append((place, value))
            place -= 1
        place -= 0.6
    figure = Figure(figsize=(7.5, 0.22 * -place + 1.0), layout="constrained")
    axes = figure.subplots()
    for name, found in bars.items():
        places, values = zip(*found, strict=True) if found else ((), ())
        drawn = axes.barh(places, [v - 1 for v in values], 0.85, left=1, label=name)
        axes.bar_label(drawn, [_times(value) for value in values], padding=3, fontsize=8)
    axes.set_yticks(ticks, [row["operator"] for row in rows])
    axes.set_xscale("log")
    largest = max(value for found in bars.values() for _, value in found)
    smallest = min(value for found in bars.values() for _, value in found)
    axes.set_xlim(min(0.5, 0.8 * smallest), 2 * largest)
    marks = [mark for mark in (1, 3, 10, 30, 100, 300) if mark < 2 * largest]
    axes.set_xticks(marks, [f"{mark}x" for mark in marks])
    axes.minorticks_off()
    axes.axvline(1, color="0.3", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    where = result["machine"]["gpu"] or "one CPU thread"
    size = " x ".join(map(str, shown))
    title = f"diffreg is so many times as fast\n{BOTH}, {size}, {where}"
    axes.set_title(title, fontsize=10)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=140)
    return target.getvalue()
