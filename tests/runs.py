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


KNOWN = {"labels": 1.0, "landmarks": 0.1}  # weights of [objective]


def known_of_some(folder):
    """A manifest in a folder: pairs of which each has some of all that can be known of one."""
    columns = "moving,fixed,moving_label,fixed_label,moving_points,fixed_points,fixed_mask"
    for name, at in (("a", 11.0), ("b", 13.0), ("c", 12.0)):
        values = head(at)
        np.savez(folder / f"{name}.npz", values)
        np.savez(folder / f"{name}_label.npz", (values > 50).astype(np.uint8) + (values > 120))
        points = 4 + 10 * np.random.default_rng(int(at)).random((3, 2))
        lines = [f"{i:.3f},{j:.3f}" for i, j in points]
        for count in (2, 3):
            rows = ["i,j", *lines[:count]]
            (folder / f"{name}_{count}.csv").write_text("\n".join(rows))
    rows = [
        "a.npz,b.npz,a_label.npz,b_label.npz,a_2.csv,b_2.csv,a_label.npz",
        "b.npz,c.npz,,,b_3.csv,c_3.csv,",
        "c.npz,a.npz,c_label.npz,a_label.npz,,,",
    ]
    (folder / "pairs.csv").write_text("\n".join([columns, *rows]))
    return folder / "pairs.csv"


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
