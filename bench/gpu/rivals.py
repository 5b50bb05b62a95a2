"""What others take, in the same run: eager PyTorch, torch.compile, and the libraries that are here.

A candidate that gives other results than ours has no time (diffreg/benchmark/operators.py).
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import torch
from fused import FUSED, agreement
from kernels import timed
from rows import Trial, put
from shapes import IMAGES, SMALL, VOLUME, device, is_dry, shapes
from work import CASES, OF_THE_BENCHMARK, Draw, both

from diffreg.benchmark.operators import measure
from diffreg.benchmark.peers import missing

SECONDS = 0.0 if is_dry() else 0.25
DRY = ("registration_objective_default",)  # what a dry run has
KEPT = (
    *("name", "shape", "dtype", "nanoseconds_a_voxel", "speedup", "share_of_copy"),
    *("disagrees", "compile_seconds"),
)


def against_eager(trial: Trial, shape: tuple[int, ...], compiling: float = 0.0) -> None:
    """For so many seconds torch.compile is begun, too."""
    end = time.monotonic() + compiling
    for name in DRY if is_dry() else OF_THE_BENCHMARK:
        case = OF_THE_BENCHMARK[name]
        with trial(case.name, shape=list(shape)):
            draw = Draw(shape, device=device())
            row: dict[str, Any] = measure(case, draw, True, time.monotonic() < end, SECONDS)
            row["name"] = row.pop("operator")
            put(**{name: row[name] for name in KEPT})


def against_fused(trial: Trial, shape: tuple[int, ...]) -> None:
    """Kernels of other projects, on their own layout of the inputs."""
    for rival in FUSED:
        about = {"shape": list(shape), "of": rival.case}
        with trial(rival.name, **about):
            if is_dry() or not find_spec(rival.module):
                raise NotImplementedError(f"{rival.module} is not installed")
            draw = Draw(shape, device=device())
            case = CASES[rival.case]
            run = rival.prepared(case.inputs(draw))
            agrees = agreement(rival, case, draw)
            if agrees < rival.least:
                raise RuntimeError(f"agrees to {agrees:.4f} only")
            ours = timed(both(case, draw))
            put(
                name=rival.name,
                **about,
                agrees=round(agrees, 5),
                us=round(1e6 * timed(run).median, 1),
                ours_us=round(1e6 * ours.median, 1),
            )


def main() -> None:
    trial = Trial()
    put(name="libraries", not_installed=", ".join(missing()), torch=str(torch.__version__))
    (volume, images, small) = (shapes(s)[0] for s in (VOLUME, IMAGES, SMALL))
    against_fused(trial, volume)
    against_eager(trial, volume)
    if not is_dry():
        against_eager(trial, images)
    against_eager(trial, small, 0.0 if is_dry() else 35.0)
    trial.end()


if __name__ == "__main__":
    main()
