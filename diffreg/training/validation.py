"""Measures a network on pairs that it is not trained on, as they are."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffreg.data.known import Known
from diffreg.data.pairs import PairDataset, Sample
from diffreg.metrics import dice, shared_labels
from diffreg.models import applied
from diffreg.ops import jacobian_determinant, warp
from diffreg.report.figures import pair_figure
from diffreg.report.panels import PairView
from diffreg.training.log import ValidationLog
from diffreg.training.own import check_displacement
from diffreg.training.own_pairs import OwnPairs
from diffreg.training.ranks import Ranks

Predict = Callable[[Tensor, Tensor], Tensor]
Measure = Callable[[tuple[Tensor, Tensor], Tensor, Tensor | None, Known], Tensor]


def validate(
    predict: Predict,
    dataset: PairDataset | OwnPairs,
    measured: Measure,
    ranks: Ranks,
    step: int,
) -> ValidationLog:
    """The means over all pairs, each rank measuring its share.

    Args:
        predict: (moving, fixed) -> displacement, on the ranks' device.
        dataset: the pairs; nothing is drawn or augmented.
        measured: what the network minimises, (images, displacement, mask, known) -> terms (9,).
        ranks: the processes of the run.
        step: after which the network is measured.

    Returns:
        A line of the log; every rank gets the same.
    """
    # 10 sums over pairs, their number; 2 sums over pairs with labels, their number.
    sums = torch.zeros(14, dtype=torch.float64)
    smallest = torch.tensor(torch.inf, dtype=torch.float64)
    for index in ranks.share(range(len(dataset))):
        sample, known = dataset.whole(index)
        moving, fixed = sample.moving.to(ranks.device), sample.fixed.to(ranks.device)
        mask = None if sample.mask is None else sample.mask.to(ranks.device)
        with torch.no_grad():
            displacement = predict(moving, fixed)
            terms = measured((moving, fixed), displacement, mask, known.to(ranks.device))
            cells = jacobian_determinant(displacement, reduce="min").cpu()
        folded = 100 * (cells <= 0).double().mean().item()
        sums[:11] += torch.tensor([*terms.tolist(), folded, 1], dtype=torch.float64)
        smallest = torch.minimum(smallest, cells.min().double())
        overlaps = _overlaps(sample, displacement.cpu())
        if overlaps is not None:
            sums[11:] += torch.tensor([*overlaps, 1], dtype=torch.float64)
    sums = ranks.sum(sums.to(ranks.device)).cpu()
    smallest = ranks.smallest(smallest.to(ranks.device)).cpu()
    means, overlap = (sums[:10] / sums[10]).tolist(), sums[11:13] / sums[13]  # NaN without labels
    before, after = overlap.tolist()
    return ValidationLog._make(
        [step, *means[:5], smallest.item(), means[9], before, after, *means[5:9]]
    )


def picture(
    predict: Predict, dataset: PairDataset | OwnPairs, device: torch.device, index: int = 0
) -> bytes:
    """One pair, moving | fixed | warped | overlays | mesh, as a PNG file."""
    sample = dataset.whole(index)[0]
    with torch.no_grad():
        displacement = predict(sample.moving.to(device), sample.fixed.to(device)).cpu()
    view = PairView(
        dataset.title(index),
        sample.moving[0, 0].numpy(),
        sample.fixed[0, 0].numpy(),
        warp(sample.moving, displacement)[0, 0].numpy(),
        displacement[0].numpy(),
        spacing=dataset.spacing or (1.0,) * (sample.fixed.ndim - 2),
        display=sample.display,
    )
    drawn = pair_figure(view, 2.6)
    gc.collect()  # a figure refers to itself: a dozen megabytes of pixels until it is found
    return drawn


def predictor(network: Callable[..., Tensor], device: torch.device, precision: str) -> Predict:
    """The network as a function, in the run's precision; what it returns is float32."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)

    def predict(moving: Tensor, fixed: Tensor) -> Tensor:
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            displacement = applied(network, moving, fixed)
        check_displacement(displacement, fixed)
        return displacement.float()

    return predict


def _overlaps(sample: Sample, displacement: Tensor) -> tuple[float, float] | None:
    """Dice before and after, mean over the labels of both maps but 0; None without labels."""
    if sample.moving_label is None or sample.fixed_label is None:
        return None
    fixed = sample.fixed_label[0, 0].numpy()
    labels = shared_labels(sample.moving_label, fixed)
    if not labels:
        return None
    after = warp(sample.moving_label, displacement, "nearest")
    maps = (sample.moving_label, after)
    before, warped = (list(dice(each[0, 0].numpy(), fixed, labels).values()) for each in maps)
    return float(np.mean(before)), float(np.mean(warped))
