"""The results in Markdown, made from the JSON alone."""

from __future__ import annotations

from collections.abc import Sequence

from diffreg.benchmark.network_tables import prediction, shares, training
from diffreg.benchmark.rows import COMPILED, Row, shape_of, table, times, usual_rows, words
from diffreg.benchmark.scaling import sizes, threads


def markdown(result: Row) -> str:
    """Every table of a run, headline first."""
    parts = [
        "# Benchmark\n",
        _conditions(result),
        headline(result),
        _section("All operators", _everything(result)),
        _section("Size", sizes(result)),
        _section("A training step", training(result) + shares(result)),
        _section("Prediction", prediction(result)),
    ]
    if "overhead" in result:
        parts.append(_section("What a call costs", _overhead(result)))
    if "threads" in result:
        parts.append(_section("Threads", threads(result)))
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
    return f"{_headline(rows)}\n{words(' '.join(lines))}"


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
    return table(titles, rows)


def headline_rows(result: Row, dimensions: int = 2) -> list[Row]:
    """Of the shapes that each operator was measured on first: three of images, one of volumes."""
    rows = usual_rows(result, dimensions)
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))[: 3 if dimensions == 2 else 1]
    return [row for row in rows if tuple(row["shape"]) in shapes]


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
    return table((*titles, "operators called, ours and eager", "other results"), rows)


def _overhead(result: Row) -> str:
    columns = ("microseconds", "bare", "added", "engine")
    rows = [[row["operator"], *(f"{row[c]:.1f}" for c in columns)] for row in result["overhead"]]
    titles = ("forward + backward, µs", "ours", "the bare operator", "added", "torch.mul")
    return table(titles, rows)


def _second_derivatives(result: Row) -> str:
    """An operator's own, of images and of volumes, in one row."""
    found: dict[str, dict[int, float]] = {}
    for row in result["second_derivatives"]:
        bytes_of = found.setdefault(row["operator"], {})
        bytes_of[len(row["shape"]) - 2] = row["bytes_allocated_a_voxel"]
    rows = [[name, *(f"{of[d]:.0f}" for d in (2, 3))] for name, of in found.items()]
    titles = ("bytes allocated a voxel, gradient of a gradient", "images", "volumes")
    return table(titles, rows)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


# docs/benchmarks.md: what stands between which marks.
PAGE = {
    "bench": headline,
    **{"sizes": sizes, "threads": threads, "training": training, "prediction": prediction},
}
