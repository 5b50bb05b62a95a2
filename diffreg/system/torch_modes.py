"""What a caller may have set in torch, put aside for a computation of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def usual_modes() -> Iterator[None]:
    """Inside, torch records gradients, casts nothing and makes tensors on the CPU.

    Whatever `torch.no_grad`, `inference_mode`, `autocast` or `set_default_device` the caller is in.
    The default dtype is the whole process's and stays: what is computed here says which it is of.

    Example:
        >>> import torch
        >>> from diffreg.system.torch_modes import usual_modes
        >>> with torch.inference_mode(), usual_modes():
        ...     (2 * torch.ones(1, requires_grad=True)).requires_grad
        True
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        yield
