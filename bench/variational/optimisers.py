"""Objective against evaluations and time for the optimisers that were tried.

    python bench/variational/optimisers.py --data FOLDER

Each starts from the same field, the solution of a coarser level, on the finest level of cardiac
pairs. All share the line search of diffreg.registration.variational. Writes
bench/results/variational_optimisers.json.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pairs import Pair, read_pairs

from diffreg.benchmark.run import machine
from diffreg.fields import resize
from diffreg.losses import Objective
from diffreg.registration import variational
from diffreg.registration.variational import FIRST_STEP, Regulariser, _dot, _search

RESULTS = Path(__file__).parents[1] / "results"
OBJECTIVE = Objective({"ncc": 1.0, "lncc": 0.5}, (60, 0, 200, 1))
EVALUATIONS = (5, 10, 15, 20, 30, 40, 60, 100)
Field = torch.Tensor


class Spent(Exception):
    """No evaluation is left."""


class Counted:
    """value_and_gradient that notes the best value and the processor time after every one."""

    def __init__(self, pair: Pair, limit: int) -> None:
        self.images, self.limit = (pair.moving, pair.fixed), limit
        self.best: list[float] = []
        self.seconds: list[float] = []
        self.start = time.process_time()

    def __call__(self, u: Field) -> tuple[float, Field]:
        if len(self.best) == self.limit:
            raise Spent
        u = u.detach().requires_grad_()
        total = OBJECTIVE(*self.images, u).total
        gradient = torch.autograd.grad(total, u)[0]
        self.best.append(min([total.item(), *self.best[-1:]]))
        self.seconds.append(time.process_time() - self.start)
        return total.item(), gradient


def preconditioned_lbfgs(evaluate: Counted, start: Field, regulariser: Regulariser) -> None:
    """diffreg.registration.variational's."""
    variational._minimise(evaluate, start, regulariser, 1000, lambda done: None)


def lbfgs(evaluate: Counted, start: Field, regulariser: Regulariser) -> None:
    """Plain L-BFGS: the first inverse Hessian is a multiple of the identity."""

    class Identity:
        def solve(self, gradient: Field, data: float) -> Field:
            return gradient / data

        def curvature(self, step: Field) -> float:
            return 0.0

    inverse = variational._data_curvature
    pairs: dict[str, Field] = {}

    def by_last_bend(change: Field, curvature: float, regulariser: Identity) -> float:
        return _dot(pairs["bend"], pairs["bend"]) / curvature

    def noting(*arguments):  # the change of the gradient, which the multiple is made of
        evaluated = _search(*arguments)
        if evaluated is not None:
            pairs["bend"] = evaluated[2] - pairs.get("gradient", start * 0)
            pairs["gradient"] = evaluated[2]
        return evaluated

    pairs["gradient"] = evaluate(start)[1]
    variational._data_curvature, variational._search = by_last_bend, noting
    try:
        variational._minimise(evaluate, start, Identity(), 1000, lambda done: None)
    finally:
        variational._data_curvature, variational._search = inverse, _search


def sobolev_gradient(evaluate: Counted, start: Field, regulariser: Regulariser) -> None:
    """The preconditioned gradient, the data term's share by Barzilai and Borwein's quotient."""
    point, (value, gradient) = start, evaluate(start)
    data = gradient.abs().max().item() / FIRST_STEP
    while True:
        direction = -regulariser.solve(gradient, data)
        found = _search(evaluate, point, value, direction, _dot(gradient, direction), 1.0)
        if found is None:
            return
        change, bend = found[0] - point, found[2] - gradient
        point, value, gradient = found
        if _dot(change, bend) > 0:
            data = variational._data_curvature(change, _dot(change, bend), regulariser)


def newton(evaluate: Counted, start: Field, regulariser: Regulariser) -> None:
    """Newton's directions by conjugate gradients, preconditioned alike.

    The Hessian times a vector is a difference of gradients, one evaluation each.
    """
    point, (value, gradient) = start, evaluate(start)
    data = gradient.abs().max().item() / FIRST_STEP
    while True:
        direction, curvature = _conjugate(evaluate, point, gradient, regulariser, data)
        data = curvature or data
        found = _search(evaluate, point, value, direction, _dot(gradient, direction), 1.0)
        if found is None:
            return
        point, value, gradient = found


def _conjugate(evaluate, point, gradient, regulariser, data, steps: int = 6):
    """(direction, curvature of the data term along its last step or None)."""
    direction, residual = torch.zeros_like(point), -gradient
    search = z = regulariser.solve(residual, data)
    energy, share = _dot(residual, z), None
    for step in range(steps):
        length = 0.01 / search.abs().max().item()
        product = (evaluate(point + length * search)[1] - gradient) / length
        curvature = _dot(search, product)
        if curvature <= 0:
            return (search if step == 0 else direction), share
        share = variational._data_curvature(search, curvature, regulariser)
        direction = direction + energy / curvature * search
        residual = residual - energy / curvature * product
        z = regulariser.solve(residual, data)
        before, energy = energy, _dot(residual, z)
        search = z + energy / before * search
    return direction, share


OPTIMISERS: dict[str, Callable[[Counted, Field, Regulariser], None]] = {
    "L-BFGS": lbfgs,
    "preconditioned L-BFGS": preconditioned_lbfgs,
    "preconditioned gradient, Barzilai-Borwein": sobolev_gradient,
    "Newton, preconditioned conjugate gradients": newton,
}


def started(pair: Pair) -> Field:
    """The solution on 48 x 48, on the finest grid."""
    size = pair.fixed.shape[2:]
    small = [variational._resample(x, [n // 2 for n in size]) for x in (pair.moving, pair.fixed)]
    coarse = variational.register_variational(*small, OBJECTIVE.with_spacing(2.0), 2, 20)
    return variational._unfolded_start(resize(coarse, size))


def traced(optimise: Callable, pair: Pair, start: Field) -> tuple[np.ndarray, float]:
    """(best value after so many evaluations, processor milliseconds an evaluation, all in)."""
    regulariser = Regulariser(start, [1.0, 1.0], OBJECTIVE.weights)
    evaluate = Counted(pair, max(EVALUATIONS))
    with contextlib.suppress(Spent):
        optimise(evaluate, start, regulariser)
    best = [evaluate.best[min(k, len(evaluate.best)) - 1] for k in EVALUATIONS]
    return np.array(best), 1e3 * evaluate.seconds[-1] / len(evaluate.best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.data / "ed_es_pairs.csv").exists():
        print(f"skipped: there is no ed_es_pairs.csv in {options.data}")
        return
    pairs = read_pairs(options.data)[::4]
    starts = [started(pair) for pair in pairs]
    rows = {}
    print(
        "| optimiser | "
        + " | ".join(f"{k}" for k in EVALUATIONS)
        + " | processor ms an evaluation |"
    )
    print("|---" * (len(EVALUATIONS) + 2) + "|")
    for name, optimise in OPTIMISERS.items():
        runs = [traced(optimise, *each) for each in zip(pairs, starts, strict=True)]
        values = np.mean([run[0] for run in runs], axis=0)
        cost = float(np.median([run[1] for run in runs]))
        rows[name] = {"value_after": values.tolist(), "milliseconds_an_evaluation": cost}
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {cost:.2f} |")
    text = {
        "machine": machine("cpu"),
        "pairs": len(pairs),
        "evaluations": EVALUATIONS,
        "results": rows,
    }
    target = RESULTS / "variational_optimisers.json"
    target.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
