"""A network that knows no contrast, where it was not trained, beside the variational method.

    python bench/compare/across.py DATA CHECKPOINT OUT.jsonl [--pairs N] [--only SET ...]

DATA is the folder of docs/data.md. What is "simulated" has its moving image in another contrast
(contrasts.py). It goes on where it was stopped.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from contrasts import simulated
from labelled import Pair, certified, fit, read_pairs
from registering import ALWAYS, ours
from slice_pairs import head_slices, heart_slices, write_slices

# SET -> what the moving image of is simulated, in another contrast.
SIMULATED = {
    "simulated": "brain2mm",
    "slices_heads_simulated": "slices_heads",
    "slices_hearts_simulated": "slices_hearts",
}
VOLUMES = ("brain2mm", "simulated", "brain1mm", "prostate_mrus", "abdomen_ctmr", "cardiac3d")
SLICES = (
    *("slices_heads", "slices_heads_simulated", "slices_hearts", "slices_hearts_simulated"),
    "slices_ctmr",
)


def methods(checkpoint: str) -> dict[str, tuple[str, ...]]:
    """Words of `diffreg register`, by name; none has an affine start."""
    network = ("--checkpoint", checkpoint)
    return {
        "network": network,
        "network, guaranteed": (*network, "--guarantee"),
        "network and 10 steps": (*network, "--refine", "10"),
        "variational": (),
        "variational, ngf": ("--similarity", "ngf"),
    }


def no_displacement(pair: Pair) -> np.ndarray:
    shape = nib.load(pair.fixed).shape
    return np.zeros((len(shape), *shape), np.float32)


def cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Pair]]:
    slices = folder / "slices"
    slices.mkdir()
    found = write_slices(options.data, slices) if set(options.only) & set(SLICES) else {}
    if found:
        found["slices_heads"] = head_slices(options.data, slices)
        found["slices_hearts"] = heart_slices(options.data / "cardiac", slices)
    for name in options.only:
        real = SIMULATED.get(name, name)
        pairs = found.get(real) or read_pairs(options.data / "volumes", real)
        for pair in pairs[: options.pairs]:
            yield name, pair if name == real else simulated(pair, folder)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def run(options: argparse.Namespace) -> None:
    out, only = options.out, options.methods
    rows = rows_of(out)
    done = {(row["set"], row["pair"], row["method"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder, out.open("a") as file:
        for name, pair in cases(options, Path(folder)):
            for method, words in {"before": None, **methods(options.checkpoint)}.items():
                if (name, pair.name, method) in done or (only and method not in only):
                    continue
                u, cost = no_displacement(pair), {}
                if words is not None:
                    with tempfile.TemporaryDirectory() as results:
                        u, cost = ours(pair, (*ALWAYS, *words), Path(results))
                found = fit(pair, u) | certified(u) | cost
                found.pop("dice_labels", None)
                row = {"set": name, "pair": pair.name, "method": method, **found}
                file.write(json.dumps(row) + "\n")
                file.flush()


def table(out: Path) -> str:
    """Means over the pairs, and the worst of them."""
    rows = rows_of(out)
    head = "set | pairs | method | Dice | worst | TRE | error, voxels | folded, %"
    lines = [f"| {head} | pairs that fold | CPU s |"]
    for key in dict.fromkeys((row["set"], row["method"]) for row in rows):
        few = [row for row in rows if (row["set"], row["method"]) == key]
        overlaps = [row["dice"] for row in few if "dice" in row]
        apart = [row["tre"] for row in few if "tre" in row]
        errors = [row["end_point_error"] for row in few if "end_point_error" in row]
        folded = [row["folded_certificate_percent"] for row in few]
        cells = (
            f"{np.mean(overlaps):.3f}",
            f"{min(overlaps):.3f}",
            f"{np.mean(apart):.2f}" if apart else "",
            f"{np.mean(errors):.2f}, {max(errors):.2f}" if errors else "",
            f"{np.mean(folded):.3g}",
            str(sum(share > 0 for share in folded)),
            f"{np.median([row['search_s'] for row in few]):.1f}" if "search_s" in few[0] else "",
        )
        lines.append(" | ".join(("| " + key[0], str(len(few)), key[1], *cells)) + " |")
    return "\n".join([lines[0], "|" + " --- |" * lines[0].count(" |"), *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, help="of each set, the first (all)")
    parser.add_argument("--only", nargs="+", choices=(*VOLUMES, *SLICES), default=list(VOLUMES))
    parser.add_argument("--methods", nargs="+", help="of the table (all)")
    options = parser.parse_args()
    run(options)
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
