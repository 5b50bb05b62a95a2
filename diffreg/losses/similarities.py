"""Similarities of two images as modules, each over the operator of its name."""

from __future__ import annotations

import torch
from torch import nn

from diffreg.ops import correlation, local_correlation, mutual_information, parallel_level_sets
from diffreg.ops._checks import check_choice, renamed_keywords
from diffreg.ops._objective import sum_of_squares
from diffreg.ops.local_correlation import OF_WINDOWS, check_window
from diffreg.ops.mutual_information import OF_BINS

REDUCTIONS = ("mean", "sum", "none")


def reduced(values: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


class Similarity(nn.Module):
    """Called `loss(warped, fixed, mask=None)`, (N, C, *S) each; reduction over the batch."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def forward(
        self, warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return reduced(self.per_sample(warped, fixed, mask), self.reduction)

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        raise NotImplementedError


class SSD(Similarity):
    """Mean squared difference.

    Args:
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import SSD
        >>> SSD()(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
        tensor(1.)
    """

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return sum_of_squares(warped, fixed, mask)


class NCC(Similarity):
    """1 - correlation coefficient (`diffreg.ops.correlation`).

    Args:
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import NCC
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> NCC()(3 * image + 1, image)
        tensor(0.)
    """

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return correlation(warped, fixed, mask)


class PLS(Similarity):
    """Parallel level sets (`diffreg.ops.parallel_level_sets`), for images of different contrast.

    Args:
        eps_warped: edge scale of the warped image, a float or (N,). None measures the image that it
            is given; when registering, give that of the unwarped moving image (Objective does).
        eps_fixed: edge scale of the fixed image; None measures it.
        variant: "pls" or "smooth".
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import PLS
        >>> ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> PLS(eps_warped=2.0, eps_fixed=1.0)(5 - 2 * ramp, ramp)
        tensor(0.)
    """

    def __init__(
        self,
        eps_warped: float | torch.Tensor | None = None,
        eps_fixed: float | torch.Tensor | None = None,
        variant: str = "pls",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_choice("variant", variant, ("pls", "smooth", "ngf"))
        self.eps_warped, self.eps_fixed, self.variant = eps_warped, eps_fixed, variant

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return parallel_level_sets(
            warped, fixed, self.eps_warped, self.eps_fixed, self.variant, mask
        )


class NGF(PLS):
    """Normalised gradient fields: `PLS` with variant "ngf". Flat regions cost 1, also when aligned.

    Args:
        eps_warped, eps_fixed: as in `PLS`.
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import NGF
        >>> NGF(eps_warped=1.0, eps_fixed=1.0)(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(1.)
    """

    def __init__(
        self,
        eps_warped: float | torch.Tensor | None = None,
        eps_fixed: float | torch.Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(eps_warped, eps_fixed, "ngf", reduction)


class LNCC(Similarity):
    """1 - squared local correlation (`diffreg.ops.local_correlation`). Flat windows cost 1.

    Args:
        window: side of the box in voxels, odd.
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import LNCC
        >>> ramp = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
        >>> LNCC(window=3)(1 - ramp, ramp).round(decimals=6)
        tensor(0.)
    """

    @renamed_keywords(**OF_WINDOWS)
    def __init__(self, window: int = 9, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_window(window)
        self.window = window

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return local_correlation(warped, fixed, self.window, mask)


class MI(Similarity):
    """Minus the mutual information in nats (`diffreg.ops.mutual_information`), for any contrast.

    Args:
        bins: along each axis of the joint histogram.
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import MI
        >>> image = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        >>> bool(MI()(1 - image, image) < MI()(image.mT, image))
        True
    """

    @renamed_keywords(**OF_BINS)
    def __init__(self, bins: int = 32, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.bins = bins

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return mutual_information(warped, fixed, self.bins, mask)
