"""Parts of the user's own, of volumes."""

import sys

import pytest
import torch
from runs import config_of
from test_trainer import weights
from torch import nn

from diffreg.registration import register
from diffreg.training import Trainer, load_network
from diffreg.training.config import EXTRA, Config

SHAPE = (12, 10, 8)


class Plain(nn.Module):
    def __init__(self, dimensions=2):
        super().__init__()
        self.layer = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(2, dimensions, 3, padding=1)
        nn.init.normal_(self.layer.weight, std=1e-2)

    def forward(self, moving, fixed):
        return self.layer(torch.cat([moving, fixed], 1))


class Volumes:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        label = torch.zeros(1, *SHAPE, dtype=torch.int64)
        label[:, 3:8, 3:7, 2:6] = 1
        image = label.float() + 0.1 * torch.rand(1, *SHAPE)
        points = torch.tensor([[3.0, 3.0, 2.0], [7.0, 6.0, 5.0]])
        return {
            **{"moving": image.roll(1, 1), "fixed": image},
            **{"moving_label": label.roll(1, 1), "fixed_label": label},
            **{"moving_points": points + torch.tensor([1.0, 0, 0]), "fixed_points": points},
            "displacement": torch.tensor([1.0, 0, 0]).reshape(3, 1, 1, 1).expand(3, *SHAPE),
        }


@pytest.mark.parametrize("name", ["own_volumes:Plain", "lunet", "object"])
def test_all_of_it_on_volumes(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_volumes", sys.modules[__name__])
    ends = []
    for folder, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            config = config_of("unused", tmp_path / folder, steps=stop, resume=True, batch_size=2)
            sections = config.to_dict()
            widths = {"widths": [4, 4]} if name == "lunet" else {}
            model = {"name": "lunet" if name == "object" else name, "dimensions": 3, **widths}
            sections |= {"model": model, "data": {}, "augmentation": {}}
            sections["objective"] |= dict.fromkeys(EXTRA, 1.0)
            sections["optimizer"] = {"learning_rate": 1e-2}
            sections["training"] |= {"accumulate": 2, "validate_every": 2}
            given = {"network": Plain(3)} if name == "object" else {}
            if given:
                torch.manual_seed(0)
                given["network"].layer.reset_parameters()
            data = Volumes(), Volumes()
            run = Trainer(Config.from_dict(sections), *data, progress=False, **given)
            run.train()
        ends.append(weights(tmp_path / folder / "last.pt"))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    network = {"network": Plain(3)} if name == "object" else {"trust": True}
    arguments = load_network(tmp_path / "whole" / "last.pt", **network)
    sample = Volumes()[0]
    images = (sample[key][None] for key in ("moving", "fixed"))
    assert register(*images, affine="none", **arguments).displacement.shape == (1, 3, *SHAPE)
