"""Learned diffeomorphic image registration on hand-written kernels under PyTorch."""

import os
import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported at their first use: `import diffreg` waits for no torch.
_ROOMS = {
    "Image": "diffreg.data.geometry",
    "image": "diffreg.data.given",
    "load_pretrained": "diffreg.training",
    "read_image": "diffreg.data.images",
    "register": "diffreg.registration",
    "register_affine": "diffreg.registration",
    "warp": "diffreg.ops",
}
_PACKAGES = (
    *("benchmark", "data", "demo", "evaluation", "fields", "losses", "metrics", "models", "ops"),
    *("registration", "training", "transforms"),
)
__all__ = ["__version__", *_ROOMS]

# How long torch's threads spin while they wait, some microseconds in place of milliseconds, unless
# the environment says something of it. On cores that are taken by others too they keep the one that
# they wait for from its core: two heads took nine times as long. Read once, when torch is loaded.
if "torch" not in sys.modules and not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"diffreg.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module 'diffreg' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_PACKAGES})
