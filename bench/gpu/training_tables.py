"""The tables of a training step: its settings, and the trainer's aims."""

from __future__ import annotations

from collections.abc import Sequence

from tables import Row, rows_of, size_of, table

NODE = "3 us a node"  # of step_counts.py


def training(measured: Row | None, older: Row) -> str:
    """Milliseconds of a step under each setting, and the share of drawing its batch."""
    steps = [r for r in rows_of(measured, "training") if "milliseconds" in r] or older["training"]
    settings = list(dict.fromkeys(name for row in steps for name in row["milliseconds"]))
    drawn = any("shares" in row for row in steps)
    rows = []
    for row in steps:
        ms = row["milliseconds"]
        cells = [f"{ms[name]:.1f}" if name in ms else "-" for name in settings]
        shares = next(reversed(row.get("shares", {"": {}}).values()))
        share = shares.get("drawing the batch")
        where = f"{row['model']}, {size_of(row['shape'])}"
        rows.append([where, *cells, *([f"{share:.0%}" if share else "-"] if drawn else [])])
    drawing = ["drawing, of step, drawing and log"] if drawn else []
    return table(["milliseconds", *settings, *drawing], rows)


def training_aims(measured: Row | None, wanted: Row, counts: Sequence[Row]) -> str:
    """The trainer, with drawing and log, over a graph of the network, objective and Adam mostly."""
    steps = {(r["model"], *r["shape"]): r for r in rows_of(measured, "training")}
    rows = []
    for aim in wanted["training"]:
        ms = steps.get((aim["model"], *aim["shape"]), {}).get("milliseconds", {})
        both = [ms.get(aim[name]) for name in ("trainer", "alone")]
        found = "not measured" if None in both else f"{both[0] / both[1]:.2f}"
        where = f"{aim['model']}, {size_of(aim['shape'])}"
        said = where, aim["trainer"], aim["alone"], f"{aim['over']}", found
        rows.append([*said, _predicted(aim, counts)])
    titles = ("a step", "of", "over", "aim, at most", "measured", "predicted")
    return f"{table(titles, rows)}\n\n{_alone(counts)}"


def _predicted(aim: Row, counts: Sequence[Row]) -> str:
    """The ratio, and between what it is with a node's time; by step_counts.py."""
    precision = "bfloat16" if "bfloat16" in aim["trainer"] else "float32"
    wanted = aim["model"], aim["shape"], precision
    for row in counts:
        if (row["model"], row["shape"], row["precision"]) == wanted:
            less = "network" if aim["alone"].startswith("the network") else "alone"
            whole, alone = (row[of]["milliseconds"] for of in ("trainer", less))
            ratios = {node: whole[node] / alone[node] for node in whole}
            return f"{ratios[NODE]:.2f} ({min(ratios.values()):.2f} to {max(ratios.values()):.2f})"
    return "-"


def _alone(counts: Sequence[Row]) -> str:
    """The graphs that were measured, beside what the counts make of them."""
    rows = [
        [
            f"{row['model']}, {size_of(row['shape'])}, {row['precision']}",
            str(row["alone"]["kernels"]),
            f"{row['measured']:.1f}" if row["measured"] else "-",
            f"{row['alone']['milliseconds'][NODE]:.1f}",
        ]
        for row in counts
    ]
    titles = "network, objective and Adam alone, in a graph", "kernels", "ms, measured", "predicted"
    return table(titles, rows)
