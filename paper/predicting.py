"""What a trained network gives, on the CPU, pair by pair, as a user gets it."""

from __future__ import annotations

import torch
from images import Pairs
from torch import Tensor
from training import Run

from diffreg.losses import Objective
from diffreg.registration import register_variational


def predict(run: Run, pairs: Pairs) -> Tensor:
    """(P, 2, H, W), pair by pair on the CPU, as a user gets them."""
    fields = []
    with torch.inference_mode():
        for k in range(len(pairs)):
            fields.append(run.network(pairs.moving[k : k + 1], pairs.fixed[k : k + 1]))
    return torch.cat(fields).clone()


def refined(run: Run, pairs: Pairs, objective: Objective, steps: int) -> Tensor:
    """Variational steps on the full grid from the network's field, (P, 2, H, W)."""
    fields = []
    for k, start in enumerate(predict(run, pairs).split(1)):
        pair = pairs.only([k])
        fields.append(
            register_variational(pair.moving, pair.fixed, objective, iterations=steps, start=start)
        )
    return torch.cat(fields)


def moves_itself(run: Run, images: Tensor) -> float:
    """How far the network moves an image that it is given twice, at most, voxels.

    Args:
        run: of the network.
        images: (P, 1, H, W).
    """
    with torch.inference_mode():
        return max(float(run.network(x, x).abs().max()) for x in images.split(1))
