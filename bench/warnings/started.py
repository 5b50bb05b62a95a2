"""The warnings after an affine start: of the study's pairs, aligned and not, which are doubted.

    python bench/warnings/started.py --data FOLDER      # as study.py

The first 20 draws of misaligned pairs of each collection, and its 20 good ones, are registered with
an affine start; what ends far from the truth should be warned of, and nothing else. Written to
bench/results/warnings_started.json.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from aligned import ROOT, Aligned, aligned_pairs
from misaligned import misaligned
from signs_of_pairs import COUNT, FAILED_MM, FAILED_VOXELS, error_of, registered, spread
from study import SEED

from diffreg.data.geometry import Image
from diffreg.evaluation.measures import whole_displacement
from diffreg.losses import usual_objective
from diffreg.registration import register
from diffreg.registration.result import Registration

RESULTS = ROOT / "bench" / "results" / "warnings_started.json"


def started(moving: Image, fixed: Image, similarity: str) -> Registration:
    """Registered with an affine start."""
    goal = usual_objective(similarity)
    return register(moving, fixed, objective=goal, affine="affine", device="cpu")


def misplaced(pairs: list[Aligned]) -> Iterator[dict]:
    """Pairs out of place, as study.py draws them."""
    for draw in range(COUNT):
        random = np.random.default_rng([SEED, draw])
        pair = pairs[random.integers(len(pairs))]
        truth = pair.truth
        if truth is None:
            name = f"reference {pair.collection} {pair.name}"
            truth = registered(name, pair, pair.moving).displacement
        found = misaligned(pair, truth, random)
        result = started(found.moving, found.fixed, pair.similarity)
        given = replace(result.prepared, moving=found.moving)
        whole = whole_displacement(result, result.displacement)
        in_one = replace(result, displacement=whole.float(), prepared=given)
        error = error_of(in_one, found.truth)
        voxel = float(np.mean(found.fixed.spacing))
        limit = FAILED_VOXELS
        if found.fixed.kind != "png":
            limit = max(FAILED_VOXELS * voxel, FAILED_MM)
        yield row(pair, found.how, result, error, error <= limit)


def row(pair: Aligned, how: str, result: Registration, error: float, home: bool) -> dict:
    about = {"collection": pair.collection, "pair": pair.name, "how": how, "home": home}
    return {**about, "error": round(error, 2), "warnings": result.metrics["warnings"]}


def good(pairs: list[Aligned]) -> Iterator[dict]:
    """As the files lie."""
    for pair in spread(pairs, COUNT):
        result = started(pair.moving, pair.fixed, pair.similarity)
        yield row(pair, "aligned", result, 0.0, True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    torch.set_num_threads(1)
    pairs, rows = aligned_pairs(parser.parse_args().data), []
    for collection in dict.fromkeys(pair.collection for pair in pairs):
        of_it = [pair for pair in pairs if pair.collection == collection]
        for name, found in (("misaligned", misplaced(of_it)), ("good", good(of_it))):
            own = [{"kind": name, **one} for one in found]
            rows += own
            print(collection, name, summary(own), flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def summary(rows: list[dict]) -> str:
    """Counts, in words."""
    home = [row for row in rows if row["home"]]
    lost = [row for row in rows if not row["home"]]
    doubted = [sum(bool(row["warnings"]) for row in part) for part in (home, lost)]
    return (
        f"{len(home)} of {len(rows)} end where they belong, {doubted[0]} of them with a warning; "
        f"{doubted[1]} of the {len(lost)} others with one"
    )


if __name__ == "__main__":
    main()
