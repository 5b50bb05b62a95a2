"""A training step takes nothing from the host, which a CUDA graph could not hold.

On the device "meta" tensors have no values: what such a step calls is seen, and any of it that has
to do with a tensor of the CPU is one that a GPU's step would have sent.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from runs import SHAPE, config_of, with_settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffreg.data import drawing, synthetic
from diffreg.data.augmentation import Augmentation
from diffreg.data.known import Known
from diffreg.data.samples import Sample
from diffreg.data.undrawn import Draws, Undrawn, Wanted
from diffreg.training import optimization
from diffreg.training.checkpoint import fresh_network
from diffreg.training.optimization import Optimization
from diffreg.training.ranks import Ranks
from diffreg.training.step import Step
from diffreg.training.terms import objective_of
from diffreg.training.validation import predictor

META = torch.device("meta")


class FromHost(TorchDispatchMode):
    """Notes what has to do with the CPU, if with any number: torch 2.11's checkpoints make none."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, value)) if isinstance(t, Tensor)]
        if any(tensor.is_cpu and tensor.numel() for tensor in tensors):
            self.seen.append(function._schema.name)
        return value


class Descent(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad)


@pytest.fixture
def step_of(monkeypatch):
    """step_of(config): a step on "meta", which has no autocast and no fused Adam."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())

    def descent(network, settings, device):
        return Descent(network.parameters(), {})

    monkeypatch.setattr(optimization, "_optimizer", descent)

    def made(config):
        network = fresh_network(config).to(META)
        network.activation_checkpointing = config.training.activation_checkpointing
        changed = Optimization(network, config, META)
        predict, objective = predictor(network, META, "float32"), objective_of(config.objective)
        step = Step(network, predict, objective, config, changed, Ranks(device=META))
        step._checked = True
        return step

    return made


def pairs(augmentation, masked, known=False):
    """Four, as they are sent."""
    randoms = [np.random.default_rng(k) for k in range(4)]
    draws = Draws.of(augmentation.random(SHAPE, randoms), augmentation, SHAPE, known)
    mask, label, points, values = None, None, Known(), None
    if masked:
        mask = torch.ones(1, 1, *SHAPE)
    if known:
        label, values = torch.zeros(1, 1, *SHAPE, dtype=torch.uint8), torch.ones(2).double()
        points = Known(None, None, *torch.zeros(2, 1, 5, 2), torch.zeros(1, 2, *SHAPE))
    image = torch.zeros(1, 1, *SHAPE)
    sample = Sample(image, image, mask, label, label, (False,) * 3, points)
    wanted = Wanted(values, 5 * known, known)

    def send(tensors):
        return [tensor.to(META) for tensor in tensors]

    draws = draws.each(lambda tensor: tensor.to(META))
    return Undrawn.of([sample] * 4, draws, augmentation, wanted, send)


SECTIONS = [
    {},
    {"objective": {"similarity": "ncc", "inverse_consistency": 1.0}},
    {"objective": {"similarity": {"ncc": 1.0, "lncc": 0.2}}},
    {"objective": {"similarity": "pls"}},
    {"objective": {"similarity": "mi"}},
    {"objective": {"similarity": {"ngf": 1.0, "ssd": 1.0}}},
    {"objective": {"labels": 1.0, "landmarks": 1.0, "displacement": 1.0}},
    {"optimizer": {"clip_norm": 1.0, "average": 0.9}},
    {"model": {"integrate": True}},
    {"model": {"half_resolution": True}},
    {"model": {"widths": [4, 8, 8, 8], "edges": True, "passes": 2}},
    {"training": {"accumulate": 2, "activation_checkpointing": True}},
]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_a_step_takes_nothing_from_the_host(sections, masked, step_of, tmp_path):
    step = step_of(with_settings(config_of("none", tmp_path), **sections))
    crop = (16, 12) if masked else ()
    known = step.config.objective.landmarks > 0
    batch = pairs(Augmentation(amplitude=0.5, sigma=4.0, flip_axes=(0,), crop=crop), masked, known)
    step(batch)  # what is kept on the device from then on
    with torch.autograd.set_multithreading_enabled(False), FromHost() as taken:
        row = step(batch)
    assert taken.seen == [] and row.shape == (13,) and row.device == META
    drawing._count.cache_clear(), synthetic._smoothing.cache_clear()


def test_what_is_sent_is_seen():
    image = torch.empty(3, device=META)
    with FromHost() as taken:
        image * torch.tensor([1.0, 2.0, 3.0]).to(META)
        torch.where(image > 0, image, 0), image + 1, image[:2]
    assert taken.seen == ["aten::lift_fresh", "aten::_to_copy"]
