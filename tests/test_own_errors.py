"""What a dataset of one's own raises: told in one line with the sample and the place."""

import importlib
import sys
import traceback

import pytest
import torch
from runs import Pairs
from test_own_data import config_with, trainer
from test_trainer import save_images
from torch.utils.data import Subset

from diffreg import register
from diffreg.cli.main import main
from diffreg.training.own import check_trainable
from diffreg.training.own_pairs import OwnPairs

OWN_CODE = """
def loss(warped, fixed, mask):
    if warped.ndim == 4:
        raise ValueError("this loss is for volumes")
"""


def test_an_error_in_code_of_one_s_own_is_told_with_its_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_losses.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "images")
    settings = {"data.images": "images", "model.widths": "[2, 4]", "training.steps": "1"}
    settings |= {"training.out": "run", "training.device": "cpu"}
    (tmp_path / "config.toml").write_text("[objective]\nsimilarity = { 'my_losses:loss' = 1.0 }\n")
    words = [f"{key}={value}" for key, value in settings.items()]
    assert main(["train", "config.toml", *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    place = f"({tmp_path / 'my_losses.py'}, line 4)"
    assert said == f"diffreg: error: this loss is for volumes {place}"


OWN_CALLBACK = """
class Told:
    def on_step(self, trainer, entry):
        return {}["step"]

def lacking(warped, fixed):
    return (warped - fixed).square().flatten(1).mean(1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Trains with a line of settings and `own_callback`; what is said last."""
    (tmp_path / "own_callback.py").write_text(OWN_CALLBACK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    sys.modules.pop("own_callback", None)
    save_images(tmp_path / "images")
    settings = ["data.images=images", "model.widths=[2, 4]", "training.steps=1"]
    settings += ["training.out=run", "training.device=cpu"]

    def train(*more, config=""):
        (tmp_path / "config.toml").write_text(config)
        return main(["train", "config.toml", *settings, *more])

    return train


def test_what_a_callback_raises_is_one_line_with_its_place(own, tmp_path, capsys, monkeypatch):
    assert own("training.callbacks=['own_callback:Told']") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    place = f"({tmp_path / 'own_callback.py'}, line 4)"
    assert said == f"diffreg: error: KeyError: 'step' {place}"
    monkeypatch.setenv("DIFFREG_DEBUG", "1")
    with pytest.raises(KeyError):
        own("training.callbacks=['own_callback:Told']")


def test_a_loss_of_other_arguments_is_refused_before_it_is_called(own, tmp_path, capsys):
    assert own(config="[objective]\nsimilarity = { 'own_callback:lacking' = 1.0 }\n") == 2
    assert not (tmp_path / "run").exists()
    assert (
        "the measure own_callback:lacking must take (warped, fixed, mask), and "
        "lacking(warped, fixed) does not"
    ) in capsys.readouterr().err


class OfOne(torch.nn.Conv2d):
    def forward(self, pair):
        return super().forward(pair)


def test_a_network_of_other_arguments_is_refused_before_it_is_called():
    network, image = OfOne(2, 2, 3, padding=1), torch.rand(12, 12)
    said = r"the network must take \(moving, fixed\), and OfOne.forward\(pair\) does not"
    with pytest.raises(TypeError, match=said):
        register(image, image.flip(0), network=network)
    with pytest.raises(TypeError, match=said):
        register(image, image.flip(0), network=network.forward)
    with pytest.raises(TypeError, match=said):
        check_trainable(network)
    with pytest.raises(ValueError, match="displacement must be"):
        register(image, image.flip(0), network=lambda *images: images[0])


class Together(torch.nn.Conv2d):
    def __call__(self, moving, fixed):
        return super().__call__(torch.cat([moving, fixed], 1))


def test_what_is_called_with_two_images_may_take_one_inside():
    hooked = torch.nn.Conv2d(2, 2, 3, padding=1)
    hooked.register_forward_pre_hook(lambda module, images: (torch.cat(images, 1),))
    for network in (Together(2, 2, 3, padding=1), hooked):
        check_trainable(network)


BROKEN = """
from torch.utils.data import Dataset, IterableDataset, Subset

def sample(index):
    return {}["subject 17"] if index == 3 else __import__("torch").rand(2, 1, 8, 8).unbind()

class Listed(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return dict(zip(("moving", "fixed"), sample(index)))

class Streamed(IterableDataset):
    def __iter__(self):
        return map(Listed().__getitem__, range(5))
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["Listed", "Streamed"])
def test_what_a_dataset_raises_is_told_with_the_sample(name, workers, tmp_path, monkeypatch):
    """In one line, whatever it is and whichever process it comes from."""
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken", None)
    dataset = getattr(importlib.import_module("broken"), name)()
    with pytest.raises(ValueError, match=f"^sample 3 of {name}: KeyError: ") as found:
        trainer(config_with(tmp_path / "run", workers), dataset, Pairs()).train()
    place = f"{tmp_path / 'broken.py'}, line 5"
    assert str(found.value) == f"sample 3 of {name}: KeyError: 'subject 17' ({place})"
    trace = "".join(traceback.format_exception(found.value.__cause__))
    assert f'"{tmp_path / "broken.py"}", line 5, in sample\n' in trace and "KeyError" in trace


INSTALLED = """
import torch
from other import read

class Listed(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return read(index)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_the_place_in_a_dataset_that_is_installed(workers, tmp_path, monkeypatch):
    """The line of its own package that called the one that failed; also inside torch's Subset."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "listed.py").write_text(INSTALLED)
    (folder / "other.py").write_text("def read(index):\n    raise OSError(index)\n")
    monkeypatch.syspath_prepend(folder)
    for name in ("listed", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    dataset = importlib.import_module("listed").Listed()
    for given, kind in ((dataset, "Listed"), (Subset(dataset, [1]), "Subset")):
        with pytest.raises(OSError, match=rf"^sample \d of {kind}: OSError: \d") as found:
            trainer(config_with(tmp_path / "run", workers), given).train()
        assert str(found.value).endswith(f" ({folder / 'listed.py'}, line 10)")


class Raising(Pairs):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def __getitem__(self, index):
        raise self.kind("of it")


class Odd(Exception):
    """Which pickle cannot make again."""

    def __init__(self, why, where=None, *, how=1):
        super().__init__(why)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (FileNotFoundError, FileNotFoundError),
        (BrokenPipeError, OSError),  # by which the command line would think that nobody reads on
        (MemoryError, MemoryError),
        (torch.OutOfMemoryError, torch.OutOfMemoryError),
        (Odd, ValueError),
        (RuntimeError, ValueError),
    ],
)
def test_what_callers_tell_apart_stays_what_it_is(kind, told, workers):
    pairs = OwnPairs(Raising(kind), 0, 2, workers=workers)
    with pytest.raises(told, match=rf"^sample \d of Raising: {kind.__name__}: ") as found:
        pairs.batch(range(2))
    assert type(found.value) is told and "\n" not in str(found.value)
    cause = found.value.__cause__
    assert isinstance(cause, kind) if workers == 0 else kind.__name__ in str(cause)


def test_what_is_no_error_passes():
    with pytest.raises(KeyboardInterrupt):
        OwnPairs(Raising(KeyboardInterrupt), 0, 2).batch(range(2))
