"""Which device a name means."""

from __future__ import annotations

import torch

from diffreg.ops._gpus import checked_device, usable
from diffreg.system.ranks import cuda_device, this_rank


def device_named(name: str | torch.device) -> torch.device:
    """A device by its name; of several ranks each takes a GPU of its machine in turn.

    Args:
        name: "cpu", "cuda", "auto" (a GPU where torch sees one and the kernels run there), or what
            torch.device takes.

    Raises:
        ValueError: a GPU is asked for and torch sees none, or there is no such device.

    Warns:
        FileWarning: "auto" is the CPU, because the kernels do not run on the GPU that is there.

    Example:
        >>> from diffreg.registration.devices import device_named
        >>> device_named("cpu")
        device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available() and usable((device := cuda_device(this_rank())).index):
            return device
        return torch.device("cpu")
    device = checked_device(name, "cpu, cuda or auto")
    return cuda_device(this_rank()) if device == torch.device("cuda") else device
