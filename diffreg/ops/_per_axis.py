"""Numbers that the host knows, beside a tensor: filled in there, for a copy to a GPU is waited for,
and a CUDA graph holds none."""

from collections.abc import Sequence

import torch


def per_axis(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One number an axis, (D,), in the dtype and on the device of `like`."""
    return torch.stack([like.new_full((), number) for number in numbers])
