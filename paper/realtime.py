"""Study 6: real time. Prediction, certificate and repair against image size and threads.

    python paper/realtime.py [--quick]

A shipped brain pair, resized; the network as `load_network` gives it, one pair at a time. The paper
registers in real time without folding: 25 pairs a second at 256 x 256 are asked for here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from images import brain_slices
from measuring import milliseconds_in_turn
from pages import Study, ranged
from torch import nn

from diffreg.fields import fold_certificate, make_diffeomorphic
from diffreg.fields.certificate import border
from diffreg.fields.polygon import crossing_edges
from diffreg.models import build_model
from diffreg.ops import jacobian_determinant
from diffreg.training.pretrained import load_pretrained

SIZES = (64, 128, 192, 256, 384, 512)
ROUNDS = 7, 5  # and repeats in each
WANTED = 25.0  # pairs a second, at 256 x 256


def corners_of(field: torch.Tensor) -> torch.Tensor:
    """The determinants of the certificate, in double."""
    return jacobian_determinant(field.double())


def folding(field: torch.Tensor) -> torch.Tensor:
    """The field, or the first of its multiples that folds."""
    while fold_certificate(field).folded_cells == 0:
        field = 1.25 * field
    return field


def works(size: int, networks: dict[str, nn.Module]) -> tuple[dict[str, Callable], int]:
    """What is timed at a size, by name, and how many cells of the folding field fold."""
    frames, _ = brain_slices()
    pair = (frames.images[k][None, None] for k in (10, len(frames.images) // 2 + 10))
    moving, fixed = (F.interpolate(x, size=(size, size), mode="bilinear") for x in pair)

    def predicted(name: str) -> torch.Tensor:
        with torch.inference_mode():
            return networks[name](moving, fixed)

    field = predicted("LU-net").clone()
    folded = folding(field)
    return {
        **{name: lambda name=name: predicted(name) for name in networks},
        "certificate": lambda: fold_certificate(field),
        "determinants": lambda: corners_of(field),
        "border": lambda: crossing_edges(*border(field[0])),
        "repair": lambda: make_diffeomorphic(field),
        "repair_of_folds": lambda: make_diffeomorphic(folded),
    }, fold_certificate(folded).folded_cells


def on(threads: int, work: Callable[[], object]) -> Callable[[], None]:
    """The work on so many threads."""

    def run() -> None:
        torch.set_num_threads(threads)
        work()

    return run


def main() -> None:
    study = Study("realtime", __doc__.partition("\n")[0], needs_data=False)
    networks = {
        "LU-net": load_pretrained("lunet-cardiac-mr")["network"],
        "SN": build_model("sn").eval().to(memory_format=torch.channels_last),
    }
    threads = [n for n in (1, 2) if n <= torch.get_num_threads()]
    rows = []
    for size in SIZES[1::2] if study.quick else SIZES:
        timed, folded_cells = works(size, networks)
        found = milliseconds_in_turn(
            {(n, name): on(n, work) for n in threads for name, work in timed.items()},
            *((2, 2) if study.quick else ROUNDS),
        )
        for number in threads:
            medians = {name: found[number, name][0] for name in timed}
            about = {"size": size, "threads": number, "folded_cells": folded_cells}
            rows.append(about | medians | {"LU-net range": found[number, "LU-net"][1:]})
    lines = [
        [
            f"{row['size']} x {row['size']}",
            row["threads"],
            ranged((row["LU-net"], *row["LU-net range"]), 1),
            f"{1e3 / row['LU-net']:.0f}",
            f"{row['SN']:.1f}",
            f"{1e3 / row['SN']:.0f}",
            f"{row['certificate']:.1f} ({row['determinants']:.1f}, {row['border']:.1f})",
            f"{row['repair_of_folds']:.0f} ({row['folded_cells']})",
            f"{1e3 / (row['LU-net'] + row['repair']):.0f}",
            f"{1e3 / (row['LU-net'] + row['repair_of_folds']):.0f}",
        ]
        for row in rows
    ]
    titles = (
        "image",
        "threads",
        "LU-net, ms [range of the rounds]",
        "pairs a second",
        "SN, ms",
        "pairs a second",
        "certificate, ms (determinants, border)",
        "certificate and repair of a field that folds, ms (folded cells)",
        "LU-net guaranteed, pairs a second",
        "where each folds",
    )
    study.write_table("", titles, lines)
    study.write_json({"rows": rows, "wanted_pairs_a_second": WANTED})


if __name__ == "__main__":
    main()
