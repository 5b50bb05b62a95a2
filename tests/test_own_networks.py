"""Networks of the user's own: by import path, as an entry point, as an object; what is refused."""

import importlib.metadata
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from runs import config_of
from test_trainer import save_images, weights
from torch import nn

from diffreg.cli.main import main
from diffreg.data.images import read_image
from diffreg.registration import register
from diffreg.training import Trainer, load_network
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.config import Config, load_config
from diffreg.training.own import OwnModel, needed

EXAMPLES = Path(__file__).parents[1] / "examples"
NETS = '''
import torch
from torch import nn
print("imported")

class Plain(nn.Module):
    """One convolution, with noise while it is trained."""

    def __init__(self, kernel=3, dropout=0.0):
        super().__init__()
        self.layer = nn.Conv2d(2, 2, kernel, padding=kernel // 2)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.layer.weight, std=1e-3)

    def forward(self, moving, fixed):
        return self.layer(self.drop(torch.cat([moving, fixed], 1)))

class Wrong(Plain):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, moving, fixed):
        u = super().forward(moving, fixed)
        if self.how == "pair":
            return u, u
        if self.how == "last":
            return u.movedim(1, -1)
        if self.how == "detached":
            return u.detach()
        return u / 0 if self.how == "infinite" else u.long()

def function():
    return Plain()
'''


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module that can be imported, `own_nets`, gone after the test."""
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_nets"
    sys.modules.pop("own_nets", None)


def with_model(config, **model):
    return Config.from_dict({**config.to_dict(), "model": model})


@pytest.fixture
def config(images, tmp_path):
    return lambda **model: with_model(config_of(images, tmp_path / "run"), **model)


def trainer(config, **parts):
    return Trainer(config, progress=False, **parts)


def test_a_network_by_its_import_path_is_trained_saved_and_registers(nets, config, tmp_path):
    settings = config(name="own_nets:Plain", kernel=5)
    assert settings.model == OwnModel("own_nets:Plain", {"kernel": 5})
    run = trainer(settings)
    assert run.network.layer.kernel_size == (5, 5)
    run.train()
    path = tmp_path / "run" / "last.pt"
    assert read_checkpoint(path)["needs"] == {"own_nets:Plain": ""}
    arguments = load_network(path, trust=True)
    kept = weights(path)
    found = arguments["network"].state_dict()
    assert all(torch.equal(kept[key], found[key]) for key in kept)
    pair = [read_image(tmp_path / "images" / f"{name}.nii") for name in "ab"]
    assert register(*pair, **arguments).method == "network"


def test_a_name_of_a_checkpoint_is_not_imported_unless_that_is_allowed(
    nets, config, tmp_path, capsys
):
    trainer(config(name="own_nets:Plain")).train()
    path = tmp_path / "run" / "last.pt"
    assert sys.modules.pop("own_nets")
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"last\.pt names what does not come with.*'own_nets:Plai"):
        load_network(path)
    pair = [str(tmp_path / "images" / f"{name}.nii") for name in "ab"]
    command = ["register", *pair, "-o", str(tmp_path / "out"), "--checkpoint", str(path)]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "--trust" in said.err and "imported\n" not in said.out
    assert "own_nets" not in sys.modules
    assert main([*command, "--trust"]) == 0
    assert "imported\n" in capsys.readouterr().out
    assert main([*command[:-2], "--trust"]) == 2
    assert "--trust is of a --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("os:system", "must be a class of torch.nn.Module"),
        ("subprocess:Popen", "must be a class of torch.nn.Module"),
        ("not_installed.nets:Net", "cannot be imported: No module named 'not_installed'"),
        ("torch.nn:NoSuchLayer", "torch.nn has no NoSuchLayer"),
        ("torch.nn:Conv2d", "does not take these settings"),
        ("../nets:Net", "model.name must be one of lunet, sn, or an import path"),
    ],
)
def test_a_hostile_or_foreign_name(config, tmp_path, name, said):
    run = trainer(config(name="lunet", widths=[4]))
    run.out.mkdir()
    run.save_checkpoint()
    contents = read_checkpoint(run.out / "last.pt")
    contents["config"]["model"] = {"name": name, "command": "true"}
    path = tmp_path / "hostile.pt"
    torch.save(contents, path)
    with pytest.raises(ValueError, match=r"hostile\.pt"):
        load_network(path)
    with pytest.raises((ValueError, ImportError), match=re.escape(said)):
        load_network(path, trust=True)


def test_a_package_that_is_gone_is_named_with_its_version(config, tmp_path):
    run = trainer(config(name="lunet", widths=[4]))
    run.out.mkdir()
    run.save_checkpoint()
    contents = read_checkpoint(run.out / "last.pt")
    contents["config"]["model"] = {"name": "gone_nets.big:Net"}
    contents["needs"] = {"gone_nets.big:Net": "gone-nets 1.4"}
    torch.save(contents, tmp_path / "gone.pt")
    said = re.escape("gone.pt needs 'gone_nets.big:Net' ('gone-nets 1.4'): model.name = ")
    with pytest.raises(
        ImportError, match=said + ".* No module named 'gone_nets'; install its pack"
    ):
        load_network(tmp_path / "gone.pt", trust=True)


def test_an_entry_point_is_a_name_for_a_path(nets, config, monkeypatch):
    point = importlib.metadata.EntryPoint("plain", "own_nets:Plain", "diffreg.models")
    entry_points = importlib.metadata.entry_points

    def found(**wanted):
        return [point] if wanted == {"group": "diffreg.models"} else entry_points(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    settings = config(name="plain", kernel=1)
    assert settings.to_dict()["model"] == {"name": "own_nets:Plain", "kernel": 1}
    assert "own_nets" not in sys.modules  # settings are read, nothing is imported
    with pytest.raises(ValueError, match=r"one of lunet, sn, plain, or .*the nearest is plain"):
        config(name="plane")


def test_an_object_is_trained_and_its_checkpoint_says_so(nets, config, tmp_path):
    import own_nets

    network = own_nets.Plain(5)
    run = trainer(config(), network=network)
    assert run.network is network
    run.train()
    path = run.out / "last.pt"
    with pytest.raises(ValueError, match=r"given to the Trainer as an object, a 'own_nets\.Plain'"):
        load_network(path, trust=True)
    loaded = load_network(path, network=own_nets.Plain(5))["network"]
    assert torch.equal(loaded.layer.weight, network.layer.weight)
    with pytest.raises(ValueError, match="its weights do not fit"):
        load_network(path, network=own_nets.Plain(3))
    sections = run.config.to_dict()
    sections["training"] |= {"resume": True, "steps": 8}
    longer = Config.from_dict(sections)
    assert trainer(longer, network=own_nets.Plain(5)).step == 6
    with pytest.raises(ValueError, match=r"'given' is of a network that is an object: give it"):
        trainer(longer)
    with pytest.raises(ValueError, match=r"run with model\.kind = 'own_nets\.Plain', not 'torch"):
        trainer(longer, network=nn.Conv2d(2, 2, 3))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pair", r"must give the displacement .*, got tuple"),
        ("last", r"here \(4, 2, 24, 20\), got \(4, 24, 20, 2\)"),
        ("detached", "has no gradient: is it detached"),
        ("infinite", "must be finite at the first step"),
        ("whole", "of a floating dtype, got torch.int64"),
    ],
)
def test_what_is_no_displacement_is_said_at_the_first_step(nets, config, how, said):
    run = trainer(config(name="own_nets:Wrong", how=how))
    with pytest.raises((ValueError, TypeError), match=said):
        run.train()
    assert not (run.out / "last.pt").exists()


def test_networks_that_cannot_be(nets, config):
    for name, said in (
        ("own_nets:function", "must be a class of torch.nn.Module, got <function"),
        ("own_nets:Plein", "own_nets has no Plein"),
        ("no_nets:Plain", "put the folder of its file on PYTHONPATH"),
    ):
        with pytest.raises((ValueError, ImportError), match=said):
            trainer(config(name=name))
    with pytest.raises(ValueError, match=r"does not take these settings: .*'width'"):
        trainer(config(name="own_nets:Plain", width=3))
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, got function"):
        trainer(config(), network=lambda moving, fixed: moving)
    with pytest.raises(ValueError, match="network must have parameters to train"):
        trainer(config(), network=nn.Identity())


def test_settings_that_a_checkpoint_cannot_hold(tmp_path):
    (tmp_path / "c.toml").write_text("[model]\nname = 'a.b:C'\nday = 2020-01-01")
    with pytest.raises(ValueError, match=r"c\.toml: \[model\] day must be text, a number"):
        load_config(tmp_path / "c.toml")


def test_dropout_is_drawn_by_seed_and_step(nets, config, tmp_path):
    """A run that goes on drops what it would have dropped, whatever else was drawn."""
    ends = []
    for stops in ([6], [3, 6]):
        sections = config(name="own_nets:Plain", dropout=0.5).to_dict()
        sections["training"] |= {"out": str(tmp_path / str(len(stops))), "resume": True}
        for stop in stops:
            torch.rand(len(stops))
            sections["training"]["steps"] = stop
            sections["optimizer"] = {"learning_rate": 1e-2}  # the same at both lengths
            trainer(Config.from_dict(sections)).train()
        ends.append(weights(tmp_path / str(len(stops)) / "last.pt"))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_what_a_checkpoint_needs():
    found = needed("torch.nn:Conv2d", "own_nets:Plain")
    assert found["torch.nn:Conv2d"].startswith("torch 2.") and found["own_nets:Plain"] == ""


def test_the_command_line_finds_a_module_beside_the_settings(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_nets.py").write_text(NETS)
    (tmp_path / "config.toml").write_text(
        "[data]\nimages = 'images'\n[model]\nname = 'beside_nets:Plain'\n"
        "[training]\nout = 'run'\nsteps = 1\nbatch_size = 2\nthreads = 1"
    )
    monkeypatch.chdir("/")
    assert main(["train", str(tmp_path / "config.toml")]) == 0
    assert "layer.weight" in weights(tmp_path / "run" / "last.pt")
    sys.modules.pop("beside_nets")


@pytest.mark.parametrize("command", ["register", "evaluate", "export"])
def test_the_command_line_finds_a_module_in_the_working_folder(
    nets, command, config, tmp_path, monkeypatch
):
    """The one that `diffreg train` found: it stood beside the settings."""
    trainer(config(name="own_nets:Plain")).train()
    sys.modules.pop("own_nets")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    pair = sorted(map(str, Path("images").iterdir()))[:2]
    words = {
        "register": [*pair, "-o", "out", "--no-report", "--checkpoint", "run/last.pt"],
        "evaluate": ["images", "-o", "out", "--checkpoint", "run/last.pt", "--all-pairs"],
        "export": ["run/last.pt", "-o", "net.pt2", "--pt2"],
    }[command]
    assert main([command, *words]) == 2  # it is not imported without being asked
    assert main([command, *words, "--trust"]) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["LocalNet", "VoxelMorph"])
def test_networks_of_monai_and_voxelmorph_are_trained_and_register(name, tmp_path, monkeypatch):
    for library in ("monai", "voxelmorph"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(library, reason=f"the example needs it: pip install {library}")
    monkeypatch.syspath_prepend(EXAMPLES)
    save_images(tmp_path / "images")
    config = config_of(tmp_path / "images", tmp_path / "run", steps=3, batch_size=2)
    sections = with_model(config, name=f"own_networks:{name}").to_dict()
    sections["augmentation"] = {"crop": [16, 16]}
    run = trainer(Config.from_dict(sections))
    run.train()
    needs = read_checkpoint(run.out / "last.pt")["needs"]
    assert list(needs) == [f"own_networks:{name}"]
    arguments = load_network(run.out / "last.pt", trust=True)
    crop = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert arguments["network"](crop, crop).shape == (1, 2, 16, 16)
        assert torch.equal(arguments["network"](crop, crop), run.network.eval()(crop, crop))
    assert register(crop, crop.flip(2), affine="none", **arguments).method == "network"
