"""A network that knows no contrast, where it was not trained, beside the variational method.

    python bench/compare/across.py VOLUMES CHECKPOINT OUT.jsonl [--pairs N] [--only SET ...]

VOLUMES has pairs.csv, as for compare.py. SET "simulated" is the heads with the moving one's
intensities x, 0 to 1, replaced by 1 - |2 x - 1|: grey matter brightest. It goes on where it was
stopped.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from labelled import Pair, certified, fit, read_pairs
from registering import ours

SIMULATED = "simulated"
SETS = ("brain2mm", SIMULATED, "brain1mm", "prostate_mrus", "abdomen_ctmr", "cardiac3d")


def methods(checkpoint: str) -> dict[str, tuple[str, ...]]:
    """Words of `diffreg register`, by name."""
    network = ("--checkpoint", checkpoint)
    return {
        "network": network,
        "network, guaranteed": (*network, "--guarantee"),
        "network and 10 steps": (*network, "--refine", "10"),
        "variational": (),
        "variational, ngf": ("--similarity", "ngf"),
        # what the network's refinement minimises, from nothing
        "variational, pls": ("--similarity", "pls", "--weights", "3,0,4,1"),
    }


def simulated(pair: Pair, folder: Path) -> Pair:
    """The pair with its moving image in another contrast."""
    image = nib.load(pair.moving)
    values = np.asarray(image.dataobj, np.float32)
    values = 255 * (1 - np.abs(2 * values / values.max() - 1))
    path = folder / pair.moving.name
    nib.save(nib.Nifti1Image(values.astype(np.uint8), image.affine), path)
    return replace(pair, moving=path)


def cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Pair]]:
    for name in options.only:
        real = "brain2mm" if name == SIMULATED else name
        for pair in read_pairs(options.volumes, real)[: options.pairs]:
            yield name, simulated(pair, folder) if name == SIMULATED else pair


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
                u, cost = np.zeros((3, *nib.load(pair.fixed).shape), np.float32), {}
                if words is not None:
                    with tempfile.TemporaryDirectory() as results:
                        u, cost = ours(pair, words, Path(results))
                found = fit(pair, u) | certified(u) | cost
                del found["dice_labels"]
                row = {"set": name, "pair": pair.name, "method": method, **found}
                file.write(json.dumps(row) + "\n")
                file.flush()


def table(out: Path) -> str:
    """Means over the pairs, and the worst of them."""
    rows = rows_of(out)
    lines = ["| set | pairs | method | Dice | worst | TRE | folded, % | pairs that fold | CPU s |"]
    for key in dict.fromkeys((row["set"], row["method"]) for row in rows):
        few = [row for row in rows if (row["set"], row["method"]) == key]
        overlaps = [row["dice"] for row in few]
        apart = [row["tre"] for row in few if "tre" in row]
        folded = [row["folded_certificate_percent"] for row in few]
        cells = (
            f"{np.mean(overlaps):.3f}",
            f"{min(overlaps):.3f}",
            f"{np.mean(apart):.2f}" if apart else "",
            f"{np.mean(folded):.3g}",
            str(sum(share > 0 for share in folded)),
            f"{np.median([row['search_s'] for row in few]):.1f}" if "search_s" in few[0] else "",
        )
        lines.append(" | ".join(("| " + key[0], str(len(few)), key[1], *cells)) + " |")
    return "\n".join([lines[0], "|" + " --- |" * 9, *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volumes", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, help="of each set, the first (all)")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", help="of the table (all)")
    options = parser.parse_args()
    run(options)
    sys.stdout.write(table(options.out) + "\n")


if __name__ == "__main__":
    main()
