"""Training on a GPU: graphs and eager steps have the same bits, nothing waits, runs go on."""

import numpy as np
import pytest
import torch
from runs import KNOWN, Pairs, config_of, head, known_of_some, trainer, with_settings
from torch.utils._pytree import tree_flatten, tree_unflatten

from diffreg.training import Config, Trainer, sent_ahead
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.log import read_log

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
SECTIONS = [
    {},
    {"training": {"precision": "bfloat16"}},
    {"training": {"precision": "float16", "accumulate": 2}},
    {"optimizer": {"average": 0.9, "clip_norm": 1.0, "learning_rate": 1e-2}},
    {"objective": {"similarity": {"ncc": 1.0, "lncc": 0.2}, "inverse_consistency": 1.0}},
    {"objective": {"similarity": "mi"}},
    {"model": {"integrate": True}},
    {
        "model": {"widths": [4, 8, 8, 8], "edges": True, "passes": 2},
        "training": {"activation_checkpointing": True},
    },
]
# Where a step's pairs come from, beside images in memory.
SOURCES = ["masks", "known", "cache", "workers", "own"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, at in (("a", 11.0), ("b", 13.0), ("c", 12.0)):
        np.savez(folder / f"{name}.npz", head(at))
    return folder


def drawing_from(source, config, images, tmp_path):
    """A trainer whose pairs are read, or sent, for each step."""
    if source == "own":
        sections = {**config.to_dict(), "augmentation": {}}
        return Trainer(Config.from_dict(sections), Pairs(), progress=False)
    if source == "known":
        data = {"images": [str(known_of_some(images))]}
        return trainer(with_settings(config, data=data, objective=KNOWN))
    data = {"cache": str(tmp_path / "cache"), "workers": 2 if source == "workers" else 0}
    if source == "masks":
        np.savez(images / "m.npz", (head(11.0) > 0.1).astype(np.uint8))
        rows = ["image,mask", *(f"{name}.npz,m.npz" for name in "abc")]
        (images / "images.csv").write_text("\n".join(rows))
        data = {}
    where = images / "images.csv" if source == "masks" else images
    return trainer(with_settings(config, data={"images": [str(where)], **data}))


class Plain:
    """In the place of `Uploads`: the steps wait for what is sent."""

    def __init__(self, device):
        self.device = device

    def __call__(self, given):
        leaves, form = tree_flatten(given)
        sent = [x.to(self.device) if isinstance(x, torch.Tensor) else x for x in leaves]
        return tree_unflatten(sent, form)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_sent_for_a_step_is_what_the_step_draws(source, images, tmp_path, monkeypatch):
    """No buffer is filled while a step, which is slowed down, or a graph's copy reads it."""
    base = config_of(images, tmp_path / "run", steps=60, device="cuda")
    logs = []
    for how in ("plain", "eager", "graph"):
        training = {"out": str(tmp_path / how), "graph": how == "graph"}
        config = with_settings(base, training={**base.to_dict()["training"], **training})
        with monkeypatch.context() as patch:
            if how == "plain":
                patch.setattr(sent_ahead, "Uploads", Plain)
            run = drawing_from(source, config, images, tmp_path)
        step = run._steps.step.__call__

        def slowly(batch, step=step):
            torch.cuda._sleep(2_000_000)  # a millisecond
            return step(batch)

        run._steps.run.step = slowly
        run.train()
        assert bool(run._steps.run._graphs) == (how == "graph")
        logs.append([entry[:11] for entry in read_log(run.out / "log.csv")])
    assert logs[0] == logs[1] == logs[2]


def finished(config, **training):
    run = trainer(with_settings(config, training={**config.to_dict()["training"], **training}))
    run.train()
    return run


@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_a_run_has_the_same_bits_with_and_without_graphs_and_resumed(images, tmp_path, sections):
    base = config_of(images, tmp_path / "run", steps=60, checkpoint_every=30, device="cuda")
    for name, table in sections.items():
        base = with_settings(base, **{name: {**base.to_dict()[name], **table}})
    runs = [
        finished(base, out=str(tmp_path / name), graph=name != "eager")
        for name in ("graph", "eager")
    ]
    assert runs[0]._steps.run.replays and len(runs[0]._steps.run._graphs) == 1
    training = {**base.to_dict()["training"], "out": str(tmp_path / "stopped")}
    stopped = trainer(with_settings(base, training=training))
    stopped.take(30)
    (tmp_path / "stopped").mkdir(exist_ok=True)
    stopped.save_checkpoint()
    runs.append(finished(base, out=str(tmp_path / "stopped"), resume=True))
    ends = [read_checkpoint(run.out / "last.pt") for run in runs]
    for end in ends[1:]:
        for key, value in ends[0]["weights"].items():
            assert torch.equal(value, end["weights"][key]), key
    logs = [[e[:11] for e in read_log(run.out / "log.csv")] for run in runs]
    assert logs[0] == logs[1] and logs[2] == logs[0][30:]


@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_the_host_waits_for_no_step(images, tmp_path, sections):
    base = config_of(images, tmp_path / "run", steps=100, device="cuda")
    for name, table in sections.items():
        base = with_settings(base, **{name: {**base.to_dict()[name], **table}})
    run = trainer(base)
    run.take(30)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            run._take_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(list(run._read_steps())) == 10


def test_a_checkpoint_that_is_loaded_into_a_run_with_graphs(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run", steps=100, device="cuda"))
    run.take(10)
    run.save_checkpoint(tmp_path / "ten.pt")
    expected = [entry[:11] for entry in run.take(10)]
    run.load_checkpoint(tmp_path / "ten.pt")
    assert [entry[:11] for entry in run.take(10)] == expected
    assert run._steps.run.replays and len(run._steps.run._graphs) == 1
