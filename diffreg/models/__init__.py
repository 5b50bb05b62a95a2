"""Networks, each one self-contained file: (moving, fixed) -> displacement (N, D, *S) in voxels."""

from __future__ import annotations

from typing import Any

from torch import nn

from diffreg.models._checks import applied, dimensions_of
from diffreg.models._layers import in_memory_order, memory_order
from diffreg.models.lunet import LUNet, LUNetConfig
from diffreg.models.sn import SN, SNConfig

__all__ = [
    "MODELS",
    "SN",
    "LUNet",
    "LUNetConfig",
    "SNConfig",
    "applied",
    "build_model",
    "dimensions_of",
    "in_memory_order",
    "memory_order",
]

# name -> network; each has `name`, and `Config`, the frozen dataclass that it is built from.
MODELS: dict[str, type[LUNet] | type[SN]] = {LUNet.name: LUNet, SN.name: SN}


def build_model(name: str, **settings: Any) -> nn.Module:
    """A network with fresh weights from torch's random numbers.

    Args:
        name: one of MODELS.
        settings: those of the network's `Config`.

    Returns:
        The network, with `.name` and `.config`.

    Raises:
        ValueError: a name that is not known, or a setting out of range.

    Example:
        >>> from diffreg.models import build_model
        >>> build_model("lunet", widths=(4, 8)).config.widths
        (4, 8)
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    network: Any = MODELS[name]
    return network(network.Config(**settings))
