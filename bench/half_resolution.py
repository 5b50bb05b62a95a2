"""LU-net of volumes at full and at half resolution after equal times of training on one thread.

    python bench/half_resolution.py TRAIN.csv VALIDATE.csv [--seconds 400] [--patch 64 64 64]

Prints the validation (means over its pairs, as `diffreg train` logs it) after half the time and all
of it, in seconds of the thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from diffreg.training.config import Config
from diffreg.training.trainer import Trainer

OPTIMIZER = {"learning_rate": 1e-3, "warmup_steps": 10, "clip_norm": 1.0}
MODELS: dict[str, dict[str, Any]] = {
    "full": {"half_resolution": False},
    "half": {"half_resolution": True},
    "full, integrated": {"half_resolution": False, "integrate": True},
    "half, integrated": {"half_resolution": True, "integrate": True},
}


def measured(
    model: dict[str, Any], options: argparse.Namespace, out: str
) -> Iterator[dict[str, Any]]:
    """The validations of one run."""
    sections = {
        "data": {"images": [options.train], "validation": [options.validate]},
        "augmentation": {"crop": options.patch},
        "model": {"dimensions": 3, **model},
        "optimizer": OPTIMIZER,
        "training": {"out": out, "batch_size": 1, "steps": 10**6, "device": "cpu"},
    }
    run = Trainer(Config.from_dict(sections), progress=False)
    used = 0.0
    for limit in (options.seconds / 2, options.seconds):
        while used < limit:
            start = time.thread_time()
            run.train_step()
            used += time.thread_time() - start
        yield {"seconds": round(used), **run.validate()._asdict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("validate")
    parser.add_argument("--seconds", type=float, default=400, help="of the thread, each run (400)")
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    for name in ("train", "validate"):
        setattr(options, name, str(Path(getattr(options, name)).resolve()))
    torch.set_num_threads(1)
    for name in options.models:
        with TemporaryDirectory() as out:
            for entry in measured(MODELS[name], options, out):
                print(json.dumps({"model": name, **entry}), flush=True)


if __name__ == "__main__":
    main()
