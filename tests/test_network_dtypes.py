"""Networks in other dtypes than float32, and under another default dtype of torch's."""

import numpy as np
import pytest
import torch
from runs import config_of, trainer
from test_trainer import save_images, weights
from torch import nn

from diffreg.data.geometry import Image
from diffreg.models import build_model
from diffreg.registration import register
from diffreg.registration.predict import predict
from diffreg.training.checkpoint import load_network

DTYPES = (torch.float64, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_model = pytest.mark.parametrize("name", ["lunet", "sn"])
# Of a displacement of a voxel or so: what rounding of the weights and of what is between leaves.
TOLERANCE = {torch.float64: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.08}


@pytest.fixture(params=DTYPES, ids=str)
def default(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def blob(at):
    x = torch.arange(32, dtype=torch.float32).reshape(32, 1)
    return torch.exp(-((x - at) ** 2 + (x.T - 16) ** 2) / 40)[None, None]


def network(name, **settings):
    torch.manual_seed(0)
    found = build_model(name, **settings)
    nn.init.normal_(found.head.weight, std=0.1)  # as if trained
    return found.eval()


@every_dtype
@every_model
@pytest.mark.parametrize("integrate", [False, True])
def test_a_network_runs_in_its_own_dtype_and_gives_float32(name, dtype, integrate):
    plain = network(name, integrate=integrate)
    expected = plain(blob(18), blob(14)).detach()
    own = network(name, integrate=integrate).to(dtype)
    seen = []
    for module in own.modules():
        if isinstance(module, nn.Conv2d) and module is not own.head:
            module.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    for images in ((blob(18), blob(14)), (blob(18).to(dtype), blob(14).double())):
        found = own(*images)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    assert set(seen) == {dtype}
    found.square().mean().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in own.parameters())


@every_dtype
def test_register_and_predict_take_it(dtype):
    pair = Image(blob(18), np.eye(4)), Image(blob(14), np.eye(4))
    own = network("lunet").to(dtype)
    assert predict(own, blob(18), blob(14)).dtype == torch.float32
    result = register(*pair, network=own)
    expected = register(*pair, network=network("lunet")).displacement
    assert result.displacement.dtype == torch.float32
    assert (result.displacement - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@every_dtype
def test_another_library_s_network_is_given_what_its_layers_read(dtype):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter("count", nn.Parameter(torch.ones(1).long(), False))
            self.layer = nn.Conv2d(2, 2, 3, padding=1, dtype=dtype)

        def forward(self, moving, fixed):
            return self.layer(torch.cat([moving, fixed], 1))

    assert predict(Foreign(), blob(18), blob(14)).dtype == torch.float32


def test_registration_under_another_default_dtype(default):
    pair = Image(blob(18), np.eye(4)), Image(blob(14), np.eye(4))
    for options in ({"network": network("lunet")}, {"levels": 1, "iterations": 3}):
        result = register(*pair, **options)
        assert result.displacement.dtype == torch.float32
        assert result.values.dtype == torch.float32


def test_training_is_the_same_under_another_default_dtype(default, tmp_path):
    images = save_images(tmp_path / "images")
    here = trainer(config_of(images, tmp_path / "here", steps=2))
    here.train()
    torch.set_default_dtype(torch.float32)
    there = trainer(config_of(images, tmp_path / "there", steps=2))
    there.train()
    found, expected = (weights(run.out / "last.pt") for run in (here, there))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.set_default_dtype(default)
    kinds = {p.dtype for p in load_network(here.out / "last.pt")["network"].parameters()}
    assert kinds == {torch.float32}
