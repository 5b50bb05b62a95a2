"""The methods of the cardiac benchmark and the settings that each is tuned over."""

from collections.abc import Callable
from itertools import product

import torch
from peers import ants, demons

from diffreg.losses import Objective
from diffreg.registration import register_variational


def identity(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return moving.new_zeros(1, 2, *moving.shape[2:])


def ours(moving, fixed, lncc, weights, levels=3, iterations=60) -> torch.Tensor:
    objective = Objective({"ncc": 1.0, "lncc": lncc} if lncc else "ncc", weights)
    return register_variational(moving, fixed, objective, levels, iterations)


# name -> function of (moving, fixed, **setting) -> displacement
METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "identity": identity,
    "diffreg": ours,
    "SyNOnly CC": ants,
    "SyNOnly Mattes": ants,
    "SyNCC": ants,
    "demons": demons,
}

_FULL = (100, 70, 50, 20)  # iterations, the last on the full resolution
_SYN = {"type_of_transform": "SyNOnly", "syn_metric": "CC", "reg_iterations": _FULL}
_SYN |= {"syn_sampling": 4, "grad_step": 0.2, "flow_sigma": 3, "total_sigma": 0}
_MATTES = _SYN | {"syn_metric": "mattes", "syn_sampling": 32}  # 32 bins

GRIDS: dict[str, list[dict]] = {
    "identity": [{}],
    "diffreg": [
        *(
            {"lncc": share, "weights": (60, 0, bending, 3), "iterations": iterations}
            for share, bending, iterations in product((0.2, 0.5, 1.0), (100, 200, 400), (12, 20))
        ),
        *({"lncc": 0.5, "weights": (60, 0, 200, det), "iterations": 20} for det in (0.3, 1, 10)),
        *({"lncc": a, "weights": (60, 0, 400, 1), "iterations": 20} for a in (0.5, 1.0)),
        *(
            {"lncc": 0.5, "weights": (60, 0, b, 3), "iterations": 20, "levels": 2}
            for b in (200, 400)
        ),
        {"lncc": 0.5, "weights": (60, 1, 200, 3), "iterations": 20},
        {"lncc": 0.5, "weights": (60, 0, 200, 3), "iterations": 40},
        # the preset of the package
        *({"lncc": 0.2, "weights": (60, 1, 30, 3), "iterations": n} for n in (20, 60)),
    ],
    # syn_sampling is the radius of CC's window, the sigmas are variances.
    "SyNOnly CC": [
        _SYN,
        *(_SYN | {"syn_sampling": radius} for radius in (2, 6)),
        *(_SYN | {"flow_sigma": sigma} for sigma in (1.5, 6)),
        _SYN | {"syn_sampling": 2, "flow_sigma": 6},
        _SYN | {"total_sigma": 1},
        *(_SYN | {"grad_step": step} for step in (0.1, 0.5)),
        _SYN | {"reg_iterations": (100, 100, 100, 100)},
        _SYN | {"reg_iterations": (100, 70, 50)},
        _SYN | {"syn_sampling": 2, "reg_iterations": (40, 20, 10)},
        {"type_of_transform": "antsRegistrationSyN[so]"},
    ],
    "SyNOnly Mattes": [
        {"type_of_transform": "SyNOnly"},  # its defaults: nothing on the full resolution
        _MATTES,
        *(_MATTES | {"flow_sigma": sigma} for sigma in (1.5, 6)),
        *(_MATTES | {"grad_step": step} for step in (0.1, 0.5)),
        *(_MATTES | {"reg_iterations": n} for n in ((100, 100, 100, 100), (100, 70, 50))),
        _MATTES | {"reg_iterations": (40, 20, 10)},
    ],
    # Its deformable stage is fixed in antspyx; SyNOnly with CC is the one to tune.
    "SyNCC": [
        {"type_of_transform": "SyNCC"},
        {"type_of_transform": "SyNCC", "initial_transform": ["Identity"]},
        {"type_of_transform": "SyNCC", "initial_transform": ["Identity"], "aff_metric": "GC"},
    ],
    "demons": [
        {"forces": forces, "sigma": sigma, "levels": levels, "iterations": iterations}
        for forces, sigma, levels, iterations in product(
            ("diffeomorphic", "symmetric"), (1.0, 1.5, 2.0), (2, 3), (40, 160)
        )
    ]
    + [{"sigma": sigma, "update_sigma": 1.0} for sigma in (1.0, 1.5)],
}
