"""Writes the measured and the predicted figures of docs/cuda.md.

    python bench/gpu/page.py [OUT/results.json]

Of bench/results/gpu.json, in which a run of run.sh is kept (a path given is copied there); where
there is none, of the older bench/results/benchmark_cuda.json. Predictions are of what cuda_cost.py
counted, bench/results/cuda_counts.json, and step_counts.py, step_counts.json; aims are those of
aims.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from shapes import IMAGES, SMALL, VOLUME
from tables import Row, number, rows_of, size_of, table
from training_tables import training, training_aims

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
MEASURED, OLDER, COUNTS, STEPS = (
    RESULTS / f"{name}.json" for name in ("gpu", "benchmark_cuda", "cuda_counts", "step_counts")
)
PAGE = HERE.parents[1] / "docs" / "cuda.md"
SHAPES = {"images": IMAGES, "volume": VOLUME}
BOTH = "forward + backward"
NOT_YET = "Not measured yet by `bench/gpu/run.sh`."
LANES, SCHEDULERS = 32, 4


def predicted(aim: Row, counts: Sequence[Row], card: Row) -> float | None:
    """Microseconds: the larger of traffic and of issued instructions, kernel by kernel."""
    shape = SHAPES[aim["shape"]]
    voxels, dimensions = shape[0] * math.prod(shape[2:]), len(shape) - 2
    total = 0.0
    for name in aim["made_of"]:
        found = [
            c for c in counts if c["operator"] == name and c.get("dimensions", 2) == dimensions
        ]
        if not found or not any(kernel["instructions_a_voxel"] for kernel in found[0]["kernels"]):
            return None
        a_second = card["multiprocessors"] * SCHEDULERS * card["gigahertz"] * 1e9 * card["issued"]
        for kernel in found[0]["kernels"]:
            moved = kernel["bytes_a_voxel"] * voxels / card["terabytes_a_second"] / 1e12
            issued = (kernel["instructions_a_voxel"] or 0) / LANES * voxels / a_second
            total += 1e6 * max(moved, issued)
    return total


def as_share(aim: Row, microseconds: float, counts: Sequence[Row], card: Row) -> float:
    """Of x + 1, which moves the fewest bytes at the card's rate."""
    shape = SHAPES[aim["shape"]]
    voxels = shape[0] * math.prod(shape[2:])
    fewest = sum(
        c["fewest_bytes_a_voxel"]
        for c in counts
        if c["operator"] in aim["made_of"] and c.get("dimensions", 2) == len(shape) - 2
    )
    return fewest * voxels / card["terabytes_a_second"] / 1e6 / microseconds


def aims(measured: Row | None, counts: Sequence[Row], wanted: Row) -> str:
    """Aim, measured and predicted figure of each kernel, and of the calls from Python."""
    rows, card = [], wanted["card"]
    for aim in wanted["kernels"]:
        share = "share" in aim["aim"]
        found = _measured_row(measured, aim)
        guess = predicted(aim, counts, card)
        now, later = "-", "-"
        if found and "us" in found:
            now = f"{found['share']:.0%}" if share else f"{number(found['us'])} us"
        elif found:
            now = "no kernel" if "left_out" in found else "failed"
        if guess is not None:
            later = f"{as_share(aim, guess, counts, card):.0%}" if share else f"{number(guess)} us"
        goal = f"{aim['aim']['share']:.0%}" if share else f"{number(aim['aim']['us'])} us"
        rows.append([aim["what"], size_of(SHAPES[aim["shape"]]), goal, now, later])
    titles = ("float32", "images or volume", "aim", "measured", "predicted")
    return f"{table(titles, rows)}\n\n{_aims_of_calls(measured, wanted)}"


def _measured_row(measured: Row | None, aim: Row) -> Row | None:
    """The last one: an operator that is called for its value first has its gradient behind."""
    shape = list(SHAPES[aim["shape"]])
    same = [
        row
        for row in rows_of(measured, "kernels")
        if row.get("shape") == shape
        and row.get("dtype") == "float32"
        and (row["name"], row.get("case")) in ((aim["name"], aim["case"]), (aim["case"], None))
    ]
    return same[-1] if same else None


def _aims_of_calls(measured: Row | None, wanted: Row) -> str:
    rows = []
    for aim in wanted["calls"]:
        over = "over_floor" in aim
        goal = f"+{aim['over_floor']}" if over else f"{aim['in_all']} in all"
        cells = []
        for mode in ("engine's thread", "calling thread"):
            found = [
                row
                for row in rows_of(measured, "calls")
                if row["name"] == aim["call"] and row.get("mode") == mode
            ]
            if found:
                us = found[0]["host_us"] - (found[0]["floor_us"] if over else 0)
                cells.append(f"{'+' * over}{us:.0f}")
            else:
                cells.append("-")
        rows.append([aim["what"], goal, *cells])
    titles = (
        f"from Python, {size_of(SMALL)}, forward + backward, host us over torch.mul's",
        *("aim", "backward on the engine's thread", "on the calling one"),
    )
    return table(titles, rows)


def place(measured: Row) -> str:
    """Card, driver, commit: what the figures are of."""
    machine = next((r for r in rows_of(measured, "kernels") if r["name"] == "machine"), {})
    driver = str(machine.get("driver and clocks") or "unknown").split(",")[0]
    torch = machine.get("versions", {}).get("torch", "unknown")
    return f"{machine.get('gpu')}, driver {driver}, torch {torch}, commit {machine.get('commit')}."


def kernels(measured: Row | None, older: Row) -> str:
    """Every kernel alone, or the older run's operators."""
    if measured is None:
        return _older_operators(older)
    rows = [
        [
            row["name"] if row["name"] != BOTH else f"{row['case']}, {BOTH}",
            size_of(row["shape"]),
            row["dtype"],
            f"{row['us']:,.1f}" if row["us"] < 100 else number(row["us"]),
            f"{row['share']:.0%}",
        ]
        for row in rows_of(measured, "kernels")
        if "us" in row
    ]
    left = [r for r in rows_of(measured, "kernels") if "left_out" in r or "failed" in r]
    said = [
        f"- {r['name']}, {size_of(r['shape'])}, {r['dtype']}: {r.get('left_out') or r['failed']}"
        for r in left
    ]
    titles = ("kernels", "images or volume", "", "us", "share of x + 1")
    return "\n".join([place(measured), "", table(titles, rows), *([""] if said else []), *said])


def _older_operators(older: Row) -> str:
    rows = []
    for row in older["operators"]:
        shape = tuple(row["shape"])
        usual = row["dtype"] == "float32" and row["field"] in (None, "smooth")
        if row["direction"] != BOTH or not usual or shape not in (SMALL, IMAGES):
            continue
        voxels = shape[0] * math.prod(shape[2:])
        us = {name: ns * voxels / 1e3 for name, ns in row["nanoseconds_a_voxel"].items()}
        eager = min((t for name, t in us.items() if name.startswith("eager")), default=None)
        cells = (us["diffreg, in a graph"], us["diffreg"], eager, us.get("torch.compile"))
        rate = number(row["gigabytes_a_second"])
        rows.append([row["operator"], size_of(shape), *map(number, cells), rate])
    order = {name: k for k, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    titles = (
        *(f"{BOTH}, us", "images", "in a CUDA graph", "called from Python", "best eager"),
        *("torch.compile", "GB/s in the graph"),
    )
    machine = older["machine"]
    where = f"{machine['gpu']}, torch {machine['versions']['torch']}, commit {machine['commit']}."
    return f"{where}\n\n{table(titles, sorted(rows, key=lambda row: order[row[0]]))}"


def calls(measured: Row | None) -> str:
    """Microseconds of the host, and of the device in a graph."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows_of(measured, "calls"):
        if "mode" in row:
            found.setdefault(row["name"], {})[row["mode"]] = row
    if not found:
        return NOT_YET
    rows = []
    for name, modes in found.items():
        cells = [
            f"{modes[m]['host_us']:.0f} ({modes[m]['floor_us']:.0f})" if m in modes else "-"
            for m in ("engine's thread", "calling thread")
        ]
        rows.append([name, *cells, number(modes.get("graph", {}).get("device_us"))])
    titles = (
        f"{size_of(SMALL)}, {BOTH}, us (torch.mul)",
        *("backward on the engine's thread", "on the calling one", "in a graph"),
    )
    return table(titles, rows)


def rivals(measured: Row | None) -> str:
    rows = []
    for row in rows_of(measured, "rivals"):
        if "speedup" in row:
            others = ", ".join(f"{n} {v:.1f} x" for n, v in row["speedup"].items() if v)
            wrong = ", ".join(row["disagrees"]) or "-"
            rows.append([row["name"], size_of(row["shape"]), others, wrong])
        elif "ours_us" in row:
            ratio = f"{row['name']} {row['us'] / row['ours_us']:.1f} x"
            rows.append([row["of"], size_of(row["shape"]), ratio, "-"])
    titles = (f"{BOTH}, float32, called from Python", "images or volume", "time over ours")
    return table((*titles, "other results"), rows) if rows else NOT_YET


def sections(
    measured: Row | None, older: Row, counts: Sequence[Row], wanted: Row, steps: Sequence[Row]
) -> dict[str, str]:
    """Mark -> what stands between it and its end."""
    return {
        "aims": aims(measured, counts, wanted),
        "kernels": kernels(measured, older),
        "calls": calls(measured),
        "training": training(measured, older),
        "training aims": training_aims(measured, wanted, steps),
        "rivals": rivals(measured),
    }


def read() -> tuple[Row | None, Row, list[Row], Row, list[Row]]:
    """What `sections` takes."""
    measured, counts, steps = (
        json.loads(path.read_text()) if path.exists() else none
        for path, none in ((MEASURED, None), (COUNTS, []), (STEPS, []))
    )
    aimed = json.loads((HERE / "aims.json").read_text())
    return measured, json.loads(OLDER.read_text()), counts, aimed, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, help="of a run, to be kept")
    options = parser.parse_args()
    if options.results:
        if json.loads(options.results.read_text())["dry_run"]:
            raise SystemExit("these are the results of a dry run: tiny sizes, on the CPU")
        shutil.copyfile(options.results, MEASURED)
    sys.path.insert(0, str(HERE.parent))
    from pages import put

    for mark, text in sections(*read()).items():
        put(PAGE, mark, f"{text}\n")


if __name__ == "__main__":
    main()
