"""Parts of the user's own, of volumes."""

import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from runs import config_of
from test_trainer import weights
from torch import nn

from diffreg.cli.main import main
from diffreg.models import build_model
from diffreg.registration import register
from diffreg.training import Trainer, load_network
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.config import EXTRA, Config
from diffreg.training.own import _takes_dimensions

SHAPE = (12, 10, 8)


class Plain(nn.Module):
    def __init__(self, dimensions=2):
        super().__init__()
        self.layer = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(2, dimensions, 3, padding=1)
        nn.init.normal_(self.layer.weight, std=1e-2)

    def forward(self, moving, fixed):
        return self.layer(torch.cat([moving, fixed], 1))


class Fixed(nn.Module):
    """Of volumes alone, with a parameter of another rank, which is looked at as a row."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(2, width, 3, padding=1), nn.Conv3d(width, 3, 1))
        self.table = nn.Parameter(torch.zeros(1, 2, 3, 2))

    def forward(self, moving, fixed):
        return 0.01 * self.layers(torch.cat([moving, fixed], 1)) + self.table.view(-1)[0]


class Default(Fixed):
    def __init__(self, width, dimensions=3):
        super().__init__(width)
        self.given = dimensions


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


def of_files(tmp_path, monkeypatch, **model):
    """Settings of a run on three volumes in files."""
    monkeypatch.setitem(sys.modules, "own_volumes", sys.modules[__name__])
    (tmp_path / "images").mkdir()
    for number in range(3):
        image = nib.Nifti1Image(Volumes()[0]["fixed"][0].roll(number, 0).numpy(), np.eye(4))
        nib.save(image, tmp_path / "images" / f"{number}.nii")
    sections = config_of(tmp_path / "images", tmp_path / "run", steps=2, batch_size=1).to_dict()
    return Config.from_dict({**sections, "augmentation": {}, "model": model})


@pytest.mark.parametrize("model", [{"name": "Fixed", "dimensions": 3}, {"name": "Default"}])
def test_a_class_of_volumes_is_trained_goes_on_and_registers(model, tmp_path, monkeypatch):
    config = of_files(
        tmp_path, monkeypatch, **{**model, "name": f"own_volumes:{model['name']}", "width": 4}
    )
    run = Trainer(config, progress=False)
    run.train()
    weight, table = run.network.layers[0].weight, run.network.table
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) and table.is_contiguous()
    sections = config.to_dict()
    sections["training"] |= {"resume": True, "steps": 3}
    assert Trainer(Config.from_dict(sections), progress=False).step == 2
    pair = [str(tmp_path / "images" / f"{name}.nii") for name in (0, 1)]
    trusted = ["--checkpoint", str(tmp_path / "run" / "last.pt"), "--trust"]
    assert main(["register", *pair, "-o", str(tmp_path / "pair"), *trusted]) == 0
    # A manifest's volumes are taken whole by what is known to be of volumes.
    out = tmp_path / "all"
    assert main(["register", str(tmp_path / "images"), "-o", str(out), *trusted]) == 0
    assert len(list(out.glob("*/displacement*"))) == 6


def test_an_object_says_itself_that_it_is_of_volumes(tmp_path, monkeypatch):
    network = build_model("lunet", dimensions=3, widths=(2, 2))
    run = Trainer(of_files(tmp_path, monkeypatch), progress=False, network=network)
    run.train()
    assert read_checkpoint(run.out / "last.pt")["config"]["model"]["dimensions"] == 3
    assert run.dataset.batch([0]).fixed.shape == (1, 1, *SHAPE)
    images = build_model("lunet", widths=(2, 2))
    said = r"\[model\] says dimensions = {}, and the network that was given, a LUNet, {}: leave it"
    sections = run.config.to_dict()
    for model, given in (
        ({"name": "lunet", "dimensions": 3}, images),
        ({"name": "own_volumes:Plain", "dimensions": 2}, network),
    ):
        config = Config.from_dict({**sections, "model": model})
        wrong = said.format(model["dimensions"], given.config.dimensions)
        with pytest.raises(ValueError, match=wrong):
            Trainer(config, progress=False, network=given)


def test_layers_of_volumes_that_are_given_images_say_what_is_right(tmp_path, monkeypatch):
    config = of_files(tmp_path, monkeypatch, name="own_volumes:Fixed", width=4)
    said = (
        r"layers of volumes \(Conv3d\), and was given images, \[1, 1, .*\]: give it volumes; "
        r".* \[model\] says dimensions = 3"
    )
    with pytest.raises(ValueError, match=said):
        Trainer(config, progress=False).train()
    pair = torch.rand(1, 1, *SHAPE)
    with pytest.raises(ValueError, match=r"layers of images \(Conv2d\), and was given volumes"):
        register(pair, pair.roll(1, 2), affine="none", network=Plain(2))
    broken = nn.Sequential(nn.Conv3d(7, 3, 1))
    broken.forward = lambda moving, fixed: broken[0](moving)
    with pytest.raises(RuntimeError, match="expected input"):
        register(pair, pair.roll(1, 2), affine="none", network=broken)


def test_a_class_without_arguments_is_not_given_dimensions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()

    assert not _takes_dimensions(Net) and not _takes_dimensions(Fixed)
    assert _takes_dimensions(nn.Identity)  # whose arguments are any
