"""The settings that are searched: what `register` does with slices, and its neighbours.

Volumes begin with composed steps as well, which are one of the settings. Each changes one thing,
two of them two. All are arguments of `Objective` and `register_variational`; coarse levels that are
stiffer by another power are its levels one by one, each with its own weights.
"""

from dataclasses import dataclass, field

import torch
from search_cases import Case

from diffreg.fields import resize
from diffreg.losses import PRESETS, Objective
from diffreg.ops import Weights
from diffreg.registration import register_variational
from diffreg.registration.pyramid import levels_of, possible_levels
from diffreg.registration.schedule import COMPOSED_STEPS, LEVELS, iterations_on

FAST, LONG, FINE = (30, 30, 10), (100, 100, 60), (40, 40, 40)


@dataclass(frozen=True)
class Setting:
    """What is changed of the objective that a case comes with, and of the search.

    Args:
        bending, lncc, window, determinant: factors of the weights and of lncc's window.
        measures: another similarity, with these weights and windows.
        preset: another preset in place of all of these; its similarity gives way to `measures`.
        power: of how many voxels long a level's is, which its bending is multiplied by; diffusion
            by half of it; None: 4, that of `register_variational`.
        fewer: levels left out, the coarsest ones.
        iterations: as in `register_variational`.
        second: of the bending of a second start; the lower objective stays.
        steps: composed ones, as in `register_variational`; none where nothing is said.
    """

    bending: float = 1.0
    lncc: float = 1.0
    window: float = 1.0
    determinant: float = 1.0
    measures: dict[str, float] = field(default_factory=dict)
    preset: str | None = None
    power: int | None = None
    fewer: int = 0
    iterations: tuple[int, ...] | None = None
    second: float | None = None
    steps: int | tuple[int, ...] = 0

    def objective(self, usual: Objective) -> Objective:
        """The usual one with the changes."""
        if self.preset is not None:
            return Objective(self.measures or None, self.preset, spacing=usual.spacing)
        measures = self.measures or {
            name: part * (self.lncc if name == "lncc" else 1)
            for name, part in usual.similarity.items()
        }
        similarity, diffusion, bending, determinant = usual.weights
        return Objective(
            measures,
            Weights(similarity, diffusion, self.bending * bending, self.determinant * determinant),
            threshold=usual.threshold,
            spacing=usual.spacing,
            window=2 * round((self.window * usual.window - 1) / 2) + 1,
        )


def registered(case: Case, setting: Setting) -> torch.Tensor:
    """The displacement (1, D, *S), voxels."""
    objective = setting.objective(case.objective)
    levels = max(possible_levels(case.fixed.shape[2:], LEVELS) - setting.fewer, 1)
    if setting.power is not None:
        return continued(case, objective, setting.power, levels)

    def search(objective: Objective, levels: int, iterations=setting.iterations, start=None):
        images, steps = (case.moving, case.fixed, objective), setting.steps
        more = {"mask": case.mask, "start": start, "composed_steps": steps}
        return register_variational(*images, levels, iterations, **more)

    found = search(objective, levels)
    if setting.second is None:
        return found
    softer = Setting(bending=setting.second).objective(case.objective)
    last = iterations_on(levels)[-1]
    other = search(objective, 1, last, start=search(softer, levels))
    return min(found, other, key=lambda u: reached(case, u))


def continued(case: Case, objective: Objective, power: int, levels: int) -> torch.Tensor:
    """`register_variational`, whose power is 4, with another one."""
    moving, fixed, lengths = case.moving, case.fixed, objective.spacing
    size = fixed.shape[2:]
    u = fixed.new_zeros(1, len(size), *[1] * len(size))
    pyramid = levels_of(size, size, [0] * len(size), levels)
    for level, iterations in zip(pyramid, iterations_on(len(pyramid)), strict=True):
        spacing = [h * f for h, f in zip(lengths, level.factors, strict=True)]
        q = min(spacing) / min(lengths)
        similarity, diffusion, bending, determinant = objective.weights
        stiffness = q ** (power / 2) * diffusion, q**power * bending
        own = objective.with_spacing(spacing, Weights(similarity, *stiffness, determinant))
        images = level.of_moving(moving), level.of_fixed(fixed)
        mask = None if case.mask is None else level.of_fixed(case.mask)
        start = resize(u, level.size)
        u = register_variational(
            *images, own, 1, iterations, mask=mask, start=start, composed_steps=0
        )
    return u


def reached(case: Case, u: torch.Tensor) -> float:
    """The usual objective at u: one measure for all settings."""
    with torch.no_grad():
        return case.objective(case.moving, case.fixed, u, case.mask, False).total.item()


USUAL = "no composed steps"  # as slices are registered
_SEARCHES = {
    USUAL: Setting(),
    "levels equally stiff": Setting(power=0),
    "coarse bending x q^2": Setting(power=2),
    "coarse bending x q^6": Setting(power=6),
    "one level fewer": Setting(fewer=1),
    "one level fewer, 40, 20": Setting(fewer=1, iterations=(40, 20)),
    "bending / 4": Setting(bending=0.25),
    "bending / 2": Setting(bending=0.5),
    "bending / 2, iterations 40, 40, 40": Setting(bending=0.5, iterations=FINE),
    "bending x 2": Setting(bending=2.0),
    "bending x 4": Setting(bending=4.0),
    "determinant x 3": Setting(determinant=3.0),
    "iterations 30, 30, 10": Setting(iterations=FAST),
    "iterations 40, 40, 40": Setting(iterations=FINE),
    "iterations 100, 100, 60": Setting(iterations=LONG),
    "two starts": Setting(second=0.25),
    "composed steps 50, 25, 5": Setting(steps=(50, 25, 5)),
    "composed steps 100, 50, 10": Setting(steps=COMPOSED_STEPS),
}
WITHIN = {
    **_SEARCHES,
    "window smaller": Setting(window=0.6),
    "window larger": Setting(window=1.4),
    "lncc / 2": Setting(lncc=0.5),
    "lncc x 2": Setting(lncc=2.0),
}
OTHERS = {f"preset {name}": Setting(preset=name) for name in ("slice", "volume")}
_MEASURES = PRESETS["multimodal_volume"].similarity


def _without(left_out: str) -> dict[str, float]:
    return {name: part for name, part in _MEASURES.items() if name != left_out}


ACROSS = {
    **_SEARCHES,
    "window smaller": Setting(window=0.6),
    "window larger": Setting(window=1.4),
    "lncc / 2": Setting(lncc=0.5),
    "lncc x 2": Setting(lncc=2.0),
    **{f"without {name}": Setting(measures=_without(name)) for name in _MEASURES},
    "preset multimodal, mi": Setting(measures={"mi": 1.0}, preset="multimodal"),
    "preset multimodal, pls": Setting(preset="multimodal"),
    "preset multimodal, ngf": Setting(measures={"ngf": 1.0}, preset="multimodal"),
}
FEW_EDGES = {
    **_SEARCHES,
    "pls": Setting(preset="multimodal"),
    "ngf": Setting(measures={"ngf": 1.0}),
    "preset multimodal_volume": Setting(preset="multimodal_volume"),
}
