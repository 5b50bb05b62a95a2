"""How well and how fast misplaced heads are brought back.

    python bench/affine/study.py run --data FOLDER [--part PART]
    python bench/affine/study.py table

FOLDER holds volumes/brain2mm and the others of docs/data.md. `run` appends a line of JSON for every
case to build/affine.jsonl and goes on where it was stopped; `table` writes
bench/results/affine.{json,md}, with what peers.py has measured. One thread, its CPU time.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from cases import Case, apart, drawn, heads
from others import OTHERS
from split import PAIRS, PEERS, TUNED

from diffreg.benchmark.run import machine
from diffreg.registration import register_affine

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "build" / "affine.jsonl"
RESULTS = ROOT / "bench" / "results"
# Cases, similarity, whether the search is a fine one, and the distance that counts as found, mm.
PARTS = {
    "misplaced": (40, "ncc", False, 1.0),
    "misplaced, mi": (20, "mi", False, 1.0),
    "misplaced, lncc": (20, "lncc", False, 1.0),
    "turned by 35 to 180 degrees, --search": (20, "ncc", True, 5.0),
    "cropped, in place": (20, "ncc", False, 5.0),
    "cropped and misplaced": (20, "ncc", False, 5.0),
    "blanked and misplaced, --moving-mask": (20, "ncc", False, 5.0),
}


def found(case: Case, similarity: str, fine: bool) -> tuple[np.ndarray, float, str]:
    """The map as if nothing had been misplaced, CPU seconds, and the start."""
    begin = time.thread_time()
    result = register_affine(
        case.moving,
        case.fixed,
        similarity=similarity,
        moving_mask=case.moving_mask,
        search=fine,
    )
    seconds = time.thread_time() - begin
    return np.linalg.solve(case.misplacing, result.matrix), seconds, result.start


def in_place(data: Path, similarity: str) -> dict[str, np.ndarray]:
    """The maps of the pairs as they lie: what misplaced ones are to come back to."""
    cases = [heads(data, *pair) for pair in PAIRS]
    return {case.name: found(case, similarity, False)[0] for case in cases}


def run(data: Path, part: str, done: set[tuple[str, str]]) -> None:
    count, similarity, fine, _ = PARTS[part]
    goals: dict[str, np.ndarray] = {}
    for case in drawn(data, part, count):
        if (part, case.name) in done:
            continue
        goals = goals or in_place(data, similarity)
        matrix, seconds, start = found(case, similarity, fine)
        error = apart(matrix, goals[case.name.split(": ")[1]], case.points)
        keep({"part": part, "case": case.name, "mm": error, "cpu_s": seconds, "start": start})


def run_peers(data: Path, done: set[tuple[str, str]]) -> None:
    """How far our maps of pairs as they lie are from greedy's and ANTs', and those from another."""
    theirs = read_peers()
    for pair in PAIRS:
        case = heads(data, *pair)
        complete = set(theirs.get(case.name, {})) == set(PEERS)
        if ("peers", case.name) in done or not complete:
            continue
        maps = {name: np.array(one["matrix"]) for name, one in theirs[case.name].items()}
        for similarity in ("ncc", "mi", "lncc"):
            maps[similarity] = found(case, similarity, False)[0]
        names = list(maps)
        between = {
            f"{a} / {b}": apart(maps[a], maps[b], case.points)
            for k, a in enumerate(names)
            for b in names[k + 1 :]
        }
        keep({"part": "peers", "case": case.name, "between": between})


def read_peers() -> dict[str, dict[str, dict]]:
    """pair -> method -> its map and CPU seconds, as peers.py leaves them."""
    path = RESULTS / "affine_peers.json"
    return json.loads(path.read_text()) if path.exists() else {}


def keep(line: dict) -> None:
    RUNS.parent.mkdir(exist_ok=True)
    with RUNS.open("a") as file:
        print(json.dumps(line), file=file)
    print(json.dumps(line), flush=True)


def read_runs() -> list[dict]:
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def summary(part: str, runs: list[dict]) -> dict:
    limit = PARTS[part][3]
    errors, seconds = ([line[name] for line in runs] for name in ("mm", "cpu_s"))
    return {
        "cases": len(runs),
        "limit_mm": limit,
        "within": sum(error < limit for error in errors),
        "median_mm": statistics.median(errors),
        "worst_mm": max(errors),
        "median_cpu_s": statistics.median(seconds),
        "worst_cpu_s": max(seconds),
    }


def table() -> None:
    runs = read_runs()
    parts = {part: [line for line in runs if line["part"] == part] for part in PARTS}
    known = {part: summary(part, lines) for part, lines in parts.items() if lines}
    peers = [line["between"] for line in runs if line["part"] == "peers"]
    between = {
        name: {
            "median_mm": statistics.median(values),
            "worst_mm": max(values),
            "within_1_mm": sum(value < 1 for value in values),
        }
        for name in (peers[0] if peers else {})
        for values in [[pair[name] for pair in peers]]
    }
    seconds = {
        name: statistics.median(pair[name]["cpu_s"] for pair in read_peers().values())
        for name in (PEERS if peers else ())
    }
    others = {line["part"]: line["figures"] for line in runs if line["part"] in OTHERS}
    about = {"machine": machine("cpu"), "tuned_on": TUNED, "pairs": PAIRS}
    result = about | {"parts": known, "peers": between, "peers_cpu_s": seconds, "others": others}
    (RESULTS / "affine.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "affine.md").write_text(page(result))


def page(result: dict) -> str:
    """The tables."""
    rows = [
        f"| {part} | {s['within']} of {s['cases']} within {s['limit_mm']:g} mm | "
        f"{s['median_mm']:.2f} / {s['worst_mm']:.2f} | "
        f"{s['median_cpu_s']:.2f} / {s['worst_cpu_s']:.2f} |"
        for part, s in result["parts"].items()
    ]
    apart_rows = [
        f"| {name} | {s['within_1_mm']} of {len(PAIRS)} | "
        f"{s['median_mm']:.2f} / {s['worst_mm']:.2f} |"
        for name, s in result["peers"].items()
    ]
    other_rows = [
        f"| {part} | {name} | {value:.3g} |"
        for part, figures in result["others"].items()
        for name, value in figures.items()
    ]
    return "\n".join(
        [
            "# The affine start",
            "",
            "Heads at 2 mm, ten pairs of people that nothing was chosen on; bench/affine/study.py.",
            "Distances are means over the fixed head from the map found without misplacing; the",
            "CPU seconds of one thread are of the whole call. The other images had a say in",
            "how dear a stretch or a turn is, the abdomen and four prostates above all.",
            "",
            "| misplaced how | found | median / worst, mm | median / worst, CPU s |",
            "|---|---|---|---|",
            *rows,
            "",
            "| maps of pairs as they lie | within 1 mm | median / worst distance, mm |",
            "|---|---|---|",
            *apart_rows,
            "",
            "Their median CPU seconds, of a process of one thread from files to files: "
            + ", ".join(f"{name} {value:.1f}" for name, value in result["peers_cpu_s"].items())
            + ".",
            "",
            "| other images | figure | |",
            "|---|---|---|",
            *other_rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--part", choices=[*PARTS, "peers", *OTHERS])
    options = parser.parse_args()
    if options.action == "table":
        table()
        return
    torch.set_num_threads(1)
    done = {(line["part"], line.get("case", "")) for line in read_runs()}
    for part in [options.part] if options.part else [*PARTS, "peers", *OTHERS]:
        if part == "peers":
            run_peers(options.data, done)
        elif part in PARTS:
            run(options.data, part, done)
        elif (part, "") not in done:
            keep({"part": part, "figures": OTHERS[part](options.data)})


if __name__ == "__main__":
    main()
