"""Activations that are computed anew in the backward pass: the same bits, less memory."""

import pytest
import torch
from runs import config_of, trainer, with_settings
from test_trainer import save_images, weights

from diffreg.models import build_model
from diffreg.training.config import Config

pytestmark = pytest.mark.usefixtures("one_thread")


def network_of(dimensions, **settings):
    torch.manual_seed(0)
    network = build_model("lunet", dimensions=dimensions, widths=(4, 8, 8), **settings)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    return network


def gradients(network, images, checkpointing, precision=torch.float32):
    network.activation_checkpointing = checkpointing
    network.zero_grad()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        displacement = network(*images)
    displacement.square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dimensions", "settings"),
    [
        (2, {}),
        (2, {"half_resolution": True, "integrate": True}),
        (2, {"edges": True}),
        (3, {}),
    ],
)
def test_gradients_are_the_same_bits(dimensions, settings, precision):
    network = network_of(dimensions, **settings)
    images = torch.rand(2, 2, 1, *((33, 50) if dimensions == 2 else (24, 20, 18)))
    state = torch.get_rng_state()
    usual, anew = (gradients(network, images, c, precision) for c in (False, True))
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(usual, anew, strict=True):
        assert one.isfinite().all() and one.any() and torch.equal(one, other)


def test_fewer_activations_are_kept():
    network = network_of(2)
    images = torch.rand(2, 1, 1, 64, 64)

    def kept(checkpointing):
        network.activation_checkpointing = checkpointing
        sizes = []

        def packed(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
            network(*images)
        return sum(sizes)

    assert kept(True) < kept(False) / 2


def test_a_run_and_the_rest_of_it_give_the_same_bits(tmp_path):
    images = save_images(tmp_path / "images")
    for name, checkpointing in (("usual", False), ("anew", True)):
        config = config_of(images, tmp_path / name, activation_checkpointing=checkpointing)
        trainer(config).train()
    usual, anew = (weights(tmp_path / name / "last.pt") for name in ("usual", "anew"))
    assert all(torch.equal(usual[key], anew[key]) for key in usual)
    sections = config.to_dict()  # what was begun with it goes on without
    sections["training"] |= {"activation_checkpointing": False, "resume": True}
    assert trainer(Config.from_dict(sections)).network.activation_checkpointing is False


def test_networks_without_it_are_refused(tmp_path):
    config = config_of(save_images(tmp_path / "images"), tmp_path / "run")
    plain = config.to_dict() | {"model": {"name": "sn"}}
    config = with_settings(Config.from_dict(plain), training={"activation_checkpointing": True})
    with pytest.raises(ValueError, match=r"is of lunet; SN has no such attribute: torch\.utils"):
        trainer(config)
