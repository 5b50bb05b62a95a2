"""What the variational method does where nothing is to be done, and how near a minimum it ends.

    python bench/compare/stability.py run --data DIR
    python bench/compare/stability.py table

`run` measures every trial on the first pairs of its groups, appends one line of JSON each to --runs
and goes on where it was stopped; `table` writes bench/results/variational_stability.{json,md}. DIR
is the folder of docs/data.md.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import journal
import numpy as np
import torch
from family import reached
from scipy.ndimage import gaussian_filter
from search_cases import READERS, Case
from search_table import lines_of

from diffreg.benchmark.run import machine
from diffreg.losses import Objective
from diffreg.registration import register_variational

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
ROUNDING = 1e-6  # of an image of [0, 1]
NOISE = 0.03  # of the 99th percentile, which is 1
SMOOTHED = 0.5  # voxels, standard deviation
PAIRS = 5  # of a group at most
MORE = 300  # iterations on the finest level
Figures = dict[str, float]


def searched(case: Case, moving, fixed, objective: Objective | None = None) -> torch.Tensor:
    return register_variational(moving, fixed, objective or case.objective, mask=case.mask)


def lengths(u: torch.Tensor, where: torch.Tensor) -> Figures:
    """The 95th percentile and the largest of |u|, voxels, over the voxels of a mask (1, 1, *S)."""
    moved = u.norm(dim=1, keepdim=True)[where]
    return {"p95": float(np.percentile(moved.numpy(), 95)), "largest": moved.max().item()}


def rounding(case: Case) -> Figures:
    """How far noise of 1e-6 in the fixed image moves the field."""
    draw = torch.Generator().manual_seed(0)
    other = case.fixed + ROUNDING * torch.randn(case.fixed.shape, generator=draw)
    u, v = (searched(case, case.moving, fixed) for fixed in (case.fixed, other))
    return lengths(u - v, torch.ones_like(case.fixed, dtype=torch.bool))


def going_on(case: Case) -> Figures:
    """What many more iterations on the finest level gain of the objective, percent."""
    u = searched(case, case.moving, case.fixed)
    images = case.moving, case.fixed, case.objective
    more = register_variational(*images, 1, MORE, mask=case.mask, start=u)
    before, after = (reached(case, each) for each in (u, more))
    gain = 100 * (before - after) / abs(before)
    return {"gain_percent": gain, **lengths(more - u, torch.ones_like(case.fixed) > 0)}


def noise_of(kind: str, image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Of an image (1, 1, *S), of the standard deviation NOISE: "white", "inside", "smoothed"."""
    noise = draw.standard_normal(image.shape)
    if kind == "smoothed":
        noise = gaussian_filter(noise, (0, 0, *[SMOOTHED] * (image.ndim - 2)))
        noise /= noise.std()
    return NOISE * noise * (image > 0 if kind == "inside" else 1)


def curved(image: torch.Tensor) -> torch.Tensor:
    """Intensities that rise and fall again."""
    return 4 * image * (1 - image)


def itself(kind: str, across: bool = False, curve=None, ct: bool = False):
    """A trial: how far an image moves onto itself, with noise of its own in both.

    Args:
        kind: of noise.
        across: whether by what `register` minimises across contrasts.
        curve: of intensities, for the fixed one.
        ct: the moving image of the pair, not the fixed one.
    """

    def trial(case: Case) -> Figures:
        draw, image = np.random.default_rng(0), case.moving if ct else case.fixed
        noise = [noise_of(kind, image.numpy(), draw) for _ in range(2)]
        images = image, image if curve is None else curve(image)
        pair = [i + torch.from_numpy(n).to(i) for i, n in zip(images, noise, strict=True)]
        preset = "multimodal_volume" if across else "volume"
        objective = Objective(weights=preset, spacing=case.objective.spacing)
        return lengths(searched(case, *pair, objective), image > 0)

    return trial


class Trial(NamedTuple):
    """What is measured, and on which groups."""

    groups: tuple[str, ...]
    measure: Callable[[Case], Figures]


HEADS, VOLUMES, CT = ("heads, 2 mm",), ("heads, 2 mm", "hearts, volumes"), ("abdomen, CT / MR",)
ALL = (*VOLUMES, "prostates, MR / ultrasound")
TRIALS = {
    f"noise of {ROUNDING:g} in the fixed image": Trial(ALL, rounding),
    f"{MORE} more iterations": Trial(ALL, going_on),
    "itself, white noise": Trial(VOLUMES, itself("white")),
    "itself, white noise, across": Trial(HEADS, itself("white", True)),
    "itself, noise inside": Trial(HEADS, itself("inside")),
    "itself, noise inside, across": Trial(HEADS, itself("inside", True)),
    "itself, smoothed noise": Trial(HEADS, itself("smoothed")),
    "itself, smoothed noise, across": Trial(HEADS, itself("smoothed", True)),
    "itself through a curve, white noise, across": Trial(HEADS, itself("white", True, curved)),
    "the CT itself, white noise": Trial(CT, itself("white", ct=True)),
    "the CT itself, white noise, across": Trial(CT, itself("white", True, ct=True)),
}


def key(run: dict) -> tuple[str, ...]:
    return run["trial"], run["group"], run["pair"]


def run_all(data: Path, path: Path) -> None:
    done = journal.read(path, key)
    for group in dict.fromkeys(group for trial in TRIALS.values() for group in trial.groups):
        for case in islice(READERS[group](data), PAIRS):
            for name, trial in TRIALS.items():
                run: dict[str, Any] = {"trial": name, "group": group, "pair": case.name}
                if group in trial.groups and key(run) not in done:
                    run |= trial.measure(case)
                    journal.append(run, path)
                    print(json.dumps(run), flush=True)


def summary(found: Iterable[dict]) -> list[dict]:
    """A row for each trial and group: mean, smallest and largest over pairs of each figure."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for run in found:
        groups[run["trial"], run["group"]].append(run)
    return [
        {"trial": trial, "group": group, "pairs": len(each)}
        | {
            name: {"mean": float(np.mean(values)), "from": min(values), "to": max(values)}
            for name in ("p95", "largest", "gain_percent")
            if (values := [run[name] for run in each if name in run])
        }
        for trial in TRIALS
        for group in READERS
        if (each := groups.get((trial, group)))
    ]


ABOUT = f"""\
# Where nothing is to be done, and how near a minimum it ends

Written by bench/compare/stability.py; images in [0, 1], prepared as by `register`, its default
settings, the first {PAIRS} pairs of each group, on one grid. Told are lengths of the displacement,
or of its change, in voxels: what 95 % of the voxels are below, and the largest; and what the
objective gains, in percent of its size; means over pairs (from the smallest to the largest).

- **Noise of {ROUNDING:g}**, normal, in the fixed image: by how much the field changes.
- **{MORE} more iterations** on the finest level, from where the method ended: what they gain of the
  objective, and how far they move the field. Were it converged, it would be nothing.
- **Itself**: an image onto itself, with normal noise of {100 * NOISE:g} % of its 99th percentile,
  independent in both: everywhere ("white"), where the image is above 0 ("inside"), or smoothed by
  {SMOOTHED:g} voxels and of the same size ("smoothed"); over the voxels above 0. By `volume`,
  or by `multimodal_volume` ("across"). "Through a curve": the fixed intensity is 4 x (1 - x).
- **The CT** has 117 x 91 x 20 voxels, which the levels' sizes do not divide.
"""


def page(results: dict) -> str:
    about = results["machine"]
    head = ["trial", "images", "pairs", "95 % are below", "largest", "objective gains, %"]
    rows = [head]
    for row in results["rows"]:
        figures = [
            "{mean:.3f} ({from:.3f} to {to:.3f})".format(**row[name]) if name in row else ""
            for name in ("p95", "largest", "gain_percent")
        ]
        rows.append([row["trial"], row["group"], str(row["pairs"]), *figures])
    told = f"{about['processor']}, commit {about['commit']}."
    return "\n".join([ABOUT, told, "", *lines_of(rows)]) + "\n"


def write_results(found: Iterable[dict], to: Path = RESULTS) -> None:
    """variational_stability.json and .md in `to`."""
    found = list(found)
    results = {"machine": machine("cpu"), "rows": summary(found), "runs": found}
    (to / "variational_stability.json").write_text(json.dumps(results, indent=1) + "\n")
    (to / "variational_stability.md").write_text(page(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "variational_stability.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "table":
        return write_results(journal.read_some(options.runs, key).values())
    if options.data is None or not (options.data / "volumes" / "pairs.csv").exists():
        print(f"skipped: there is no volumes/pairs.csv in {options.data}")
        return
    run_all(options.data, options.runs)


if __name__ == "__main__":
    main()
