import pytest
import torch

from diffreg.fields import integrate
from diffreg.models import MODELS, LUNet, build_model
from diffreg.models.sn import SN, SNConfig
from diffreg.ops import jacobian_determinant

PARAMETERS = {"sn": 40_834, "lunet": 122_178}


def pair(*size: int, samples: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, samples, 1, *size, generator=generator)
    return images[0], images[1]


def seeded(name: str = "sn", **settings) -> SN | LUNet:
    torch.manual_seed(0)
    return build_model(name, **settings)


def test_has_the_parameters_of_the_design():
    # 9x9-16, 7x7-32, 5x5-16, 3x3-2, each with a bias
    count = (2 * 81 + 1) * 16 + (16 * 49 + 1) * 32 + (32 * 25 + 1) * 16 + (16 * 9 + 1) * 2
    assert sum(p.numel() for p in SN().parameters()) == count == 40_834


def test_is_known_by_its_name():
    network = seeded(integrate=True)
    assert MODELS["sn"] is SN
    assert network.name == "sn" and network.config == SNConfig(integrate=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (50, 33)], ids=str)
def test_takes_any_size(size):
    displacement = SN()(*pair(*size, samples=2))
    assert displacement.shape == (2, 2, *size) and displacement.dtype == torch.float32


def test_starts_near_the_identity():
    assert seeded()(*pair(20, 30)).abs().max() < 1e-3


def test_a_voxel_sees_ten_voxels_around_it():
    network = seeded()
    moving, fixed = pair(41, 41)
    moving.requires_grad_()
    network(moving, fixed)[0, :, 20, 20].sum().backward()
    rows, columns = torch.nonzero(moving.grad[0, 0], as_tuple=True)
    assert (rows.min(), rows.max()) == (10, 30) and (columns.min(), columns.max()) == (10, 30)


def test_the_samples_of_a_batch_do_not_mix():
    network, (moving, fixed) = seeded(), pair(16, 16, samples=3)
    alone = network(moving[1:2], fixed[1:2])
    torch.testing.assert_close(network(moving, fixed)[1:2], alone, rtol=1e-5, atol=1e-9)


def with_large_output(scale: float = 1.0, name: str = "sn", **settings) -> SN | LUNet:
    network = seeded(name=name, **settings)
    torch.nn.init.normal_(network.head.weight, std=scale)
    return network


def test_a_velocity_that_folds_as_a_displacement_does_not_when_integrated():
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 40, 40)
    images = ramp, ramp.mT.contiguous()
    assert jacobian_determinant(with_large_output(4.0)(*images)).min() < 0
    assert jacobian_determinant(with_large_output(4.0, integrate=True)(*images)).min() > 0


@pytest.mark.parametrize("name", ["sn", "lunet"])
def test_integration_is_that_of_the_fields(name):
    plain, integrated = (
        with_large_output(name=name),
        with_large_output(name=name, integrate=True, integration_steps=3),
    )
    images = pair(16, 21)
    assert torch.equal(integrated(*images), integrate(plain(*images), 3))
    assert sum(p.numel() for p in plain.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["sn", "lunet"])
@pytest.mark.parametrize("integrated", [False, True])
def test_the_end_is_float32_under_autocast(name, integrated):
    network = build_model(name, integrate=integrated)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        displacement = network(*pair(12, 12))
    assert displacement.dtype == torch.float32
    displacement.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"dimensions": 1}, r"dimensions must be 2 \(images\) or 3 \(volumes\), got 1"),
        ({"integration_steps": -1}, "integration_steps must be a whole number >= 0, got -1"),
        ({"integration_steps": True}, "integration_steps must be a whole number >= 0, got True"),
    ],
)
def test_refuses_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        SNConfig(**settings)


def test_refuses_images_that_do_not_fit():
    moving, fixed = pair(8, 8)
    with pytest.raises(ValueError, match="moving must have the shape of fixed"):
        SN()(moving, fixed[..., :4])
    with pytest.raises(ValueError, match=r"the network is of images \(dimensions = 2\)"):
        SN()(moving[None], fixed[None])
    with pytest.raises(
        TypeError, match=r"moving must be a floating-point tensor, got torch\.int64"
    ):
        SN()(moving.long(), fixed)
