"""Who is told how a run goes: in which order, whatever happens, and what is no callback."""

import gc
import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from runs import config_of, with_settings
from test_trainer import save_images, weights
from test_training_options import validated

from diffreg.training import Callback, Trainer
from diffreg.training.log import ValidationLog, read_log
from diffreg.training.validation import picture

ROOT = Path(__file__).parents[1]


class Heard(Callback):
    def __init__(self, stops_at=None):
        self.events, self.stops_at = [], stops_at

    def on_start(self, trainer):
        self.events.append(("start", trainer.step))

    def on_step(self, trainer, entry):
        self.events.append(("step", entry.step))
        if entry.step == self.stops_at:
            raise RuntimeError("a callback's own")

    def on_validation(self, trainer, entry, picture):
        assert picture.startswith(b"\x89PNG")
        self.events.append(("validation", entry.step))

    def on_checkpoint(self, trainer, path):
        assert path.exists()
        self.events.append((path.name, trainer.step))

    def on_end(self, trainer):
        self.events.append(("end", trainer.step))


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


def trainer(config, **parts):
    return Trainer(config, progress=False, **parts)


def test_a_callback_hears_all_in_order(images, tmp_path):
    heard = Heard()
    trainer(
        validated(images, tmp_path / "run", steps=3, checkpoint_every=2), callbacks=[heard]
    ).train()
    events = [event for event in heard.events if event[0] != "best.pt"]
    assert events == [
        *(("start", 0), ("step", 1), ("step", 2), ("validation", 2), ("last.pt", 2)),
        *(("step", 3), ("validation", 3), ("last.pt", 3), ("end", 3)),
    ]
    assert ("best.pt", 2) in heard.events


def test_a_run_ends_for_all_whom_it_told_that_it_began(images, tmp_path):
    first, second = Heard(stops_at=2), Heard()
    config = config_of(images, tmp_path / "run", checkpoint_every=1)
    with pytest.raises(RuntimeError, match="a callback's own"):
        trainer(config, callbacks=[first, second]).train()
    assert first.events[-2:] == [("step", 2), ("end", 2)]
    assert second.events == [("start", 0), ("step", 1), ("last.pt", 1), ("end", 2)]
    later = Heard()
    resumed = with_settings(config, training={"resume": True})
    trainer(resumed, callbacks=[later]).train()
    assert later.events[0] == ("start", 1)
    assert [entry.step for entry in read_log(tmp_path / "run" / "log.csv")] == list(range(1, 7))


def test_telling_changes_no_bit(images, tmp_path):
    for name, callbacks in (("alone", []), ("told", [Heard()])):
        trainer(config_of(images, tmp_path / name), callbacks=callbacks).train()
    one, other = (weights(tmp_path / name / "last.pt") for name in ("alone", "told"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_callback_by_its_import_path_that_may_change_where_a_run_goes_on(
    images, tmp_path, monkeypatch
):
    module = types.ModuleType("own_callbacks")
    module.Heard, module.heard, module.number = Heard, Heard(), 3
    monkeypatch.setitem(sys.modules, "own_callbacks", module)
    config = config_of(images, tmp_path / "run", callbacks=["own_callbacks:Heard"])
    run = trainer(config)
    run.train()
    assert run.callbacks[-1].events[-1] == ("end", 6)
    more = {"callbacks": ["own_callbacks:heard"], "steps": 7, "resume": True}
    trainer(with_settings(config, training=more)).train()
    assert module.heard.events == [("start", 6), ("step", 7), ("last.pt", 7), ("end", 7)]
    for path, said in (
        (
            "own_callbacks:number",
            "a callback must be an object that has one of on_start, .*, got int$",
        ),
        ("own_callbacks:Nobody", "own_callbacks has no Nobody"),
        ("Heard", "training.callbacks must be an import path"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            trainer(with_settings(config, training={"callbacks": [path]}))
    with pytest.raises(TypeError, match=r"a callback must be an object .*, got <class"):
        trainer(config, callbacks=[Heard])


class Board:
    """What the example uses of wandb."""

    def __init__(self):
        self.inits, self.logs, self.saved, self.finished = [], [], [], 0

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def log(self, values, step):
        self.logs.append((step, values))

    def save(self, path, base_path, policy):
        self.saved.append(Path(path).name)

    def finish(self):
        self.finished += 1

    def Image(self, picture):
        return picture.size


def test_the_example_of_weights_and_biases(images, tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    monkeypatch.syspath_prepend(ROOT / "examples")
    sys.modules.pop("wandb_callback", None)
    example = importlib.import_module("wandb_callback")
    config = validated(images, tmp_path / "run", steps=4)
    trainer(config, callbacks=[example.WandB("hearts")]).train()
    (begun,) = board.inits
    assert (begun["project"], begun["name"]) == ("hearts", "run")
    assert begun["config"]["training"]["steps"] == 4
    steps = [step for step, values in board.logs if "training/total" in values]
    assert steps == [1, 2, 3, 4]
    measured = [values for _, values in board.logs if "validation/pair" in values]
    validation = read_log(tmp_path / "run" / "validation.csv", ValidationLog)
    assert [round(v["validation/total"], 3) for v in measured] == [
        round(entry.total, 3) for entry in validation
    ]
    assert min(measured[0]["validation/pair"]) > 10
    assert "best.pt" in board.saved and "last.pt" in board.saved and board.finished == 1
    longer = with_settings(config, training={"steps": 5, "resume": True})
    trainer(longer, callbacks=[example.WandB()]).train()
    assert board.inits[1]["id"] == begun["id"]
    sys.modules.pop("wandb_callback")


def test_a_picture_leaves_nothing_to_be_collected(tmp_path):
    """A figure's parts refer to each other, and have a dozen megabytes of pixels."""
    config = config_of(save_images(tmp_path / "images"), tmp_path / "run")
    run = Trainer(config, progress=False)
    gc.collect()
    gc.disable()
    try:
        picture(run.network, run.dataset, torch.device("cpu"))
        assert gc.collect() < 1000
    finally:
        gc.enable()
