"""Runs of training, small ones: settings, images in memory, a dataset of one's own.

Of torch and numpy alone, so that a machine that has little else can take them (tests/gpu).
"""

import random

import numpy as np
import torch
from torch.utils.data import Dataset

from diffreg.training import Config, Trainer

SHAPE = (24, 20)


def head(at):
    x, y = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    body = np.exp(-(((x - at) / 5) ** 2) - ((y - 10) / 4) ** 2)
    return (200 * body + 20 * np.sin(x / 3 + y / 4)).astype(np.float32)


def config_of(images, out, **training):
    return Config.from_dict(
        {
            "data": {"images": [str(images)]},
            "augmentation": {"amplitude": 0.5, "sigma": 4.0, "flip_axes": [0]},
            "model": {"widths": [4, 8]},
            "objective": {"similarity": "ncc", "weights": [60, 1, 10, 3]},
            "optimizer": {"learning_rate": 1e-2, "final_learning_rate": 1e-3},
            "training": {
                "out": str(out),
                "steps": 6,
                "batch_size": 4,
                "checkpoint_every": 3,
                "threads": 1,
                **training,
            },
        }
    )


def with_settings(config, **sections):
    """The settings with some keys of some sections replaced."""
    plain = config.to_dict()
    return Config.from_dict({**plain, **{k: {**plain[k], **v} for k, v in sections.items()}})


def trainer(config):
    return Trainer(config, progress=False)


class Pairs(Dataset):
    """Discs, drawn by every generator of random numbers that there is."""

    shape = (16, 12)

    def __init__(self, length=7, **more):
        self.length, self.more = length, more

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        noise = 0.01 * (torch.rand(1).item() + np.random.rand() + random.random())
        moving, fixed = (
            torch.tensor(self._disc(at)[None] + noise) for at in (7.0 + index / 7, 9.0)
        )
        return {"moving": moving, "fixed": fixed.float(), "name": "left alone", **self.more}

    def _disc(self, at):
        x, y = np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij")
        return np.exp(-(((x - at) / 3) ** 2) - ((y - 6) / 3) ** 2)
