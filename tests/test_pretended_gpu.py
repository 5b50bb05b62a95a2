"""With a GPU that is pretended: all of a computation is on it, no training step waits for it."""

import numpy as np
import pytest
import torch
from pretended import GPU, WAITS, OnGpu, a_gpu
from runs import KNOWN, Pairs, config_of, head, known_of_some, trainer, with_settings

import diffreg
from diffreg import fields
from diffreg.models import build_model
from diffreg.training import Config, Trainer
from diffreg.transforms import Affine, Field, resample

pytestmark = pytest.mark.slow


@pytest.fixture
def gpu(monkeypatch):
    with a_gpu(monkeypatch):
        yield torch.device("cuda")


def blob(at, shape=(28, 24)):
    """A bright spot, in a volume too."""
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    centre = (at, *(n / 2 for n in shape[1:]))
    return np.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) / 20)


VOLUME = (12, 13, 14)
SIZES = pytest.mark.parametrize("shape", [(28, 24), VOLUME], ids=str)


def test_what_is_not_there_is_refused(gpu):
    here, there = torch.ones(3), torch.ones(3).to(gpu)
    assert there.device == GPU and (2 * there + 1).cpu().tolist() == [3, 3, 3]
    for mix in (lambda: here + there, lambda: torch.cat([there, here]), lambda: here @ there):
        with pytest.raises(RuntimeError, match="beside such of cuda:0"):
            mix()
    assert torch.where(there > 0, there, torch.tensor(0.0)).device == GPU
    WAITS.clear()
    for wait in (lambda: there.sum().item(), lambda: there[there > 1], lambda: here.to(gpu)):
        wait()
    there[torch.tensor([0, 1])], there.new_tensor([1.0]), torch.tensor([1.0], device=gpu)
    assert len(WAITS) == 6


@SIZES
@pytest.mark.parametrize("contrast", ["one", "two"])
def test_registering(gpu, shape, contrast):
    fixed, moving = blob(shape[0] / 2, shape), blob(shape[0] / 2 - 2, shape)
    moving = 1 - moving**2 if contrast == "two" else moving
    points = [[shape[0] / 2, 6.0, 5.0][: len(shape)], [4.0, 8.0, 7.0][: len(shape)]]
    result = diffreg.register(
        *(moving, fixed),
        device="cuda",
        levels=2,
        iterations=2,
        both_ways=True,
        fixed_mask=fixed > 1e-3,
        also=[(moving**2, fixed**2, 0.5)],
        landmarks=(np.array(points), np.array(points) + 0.5, 0.1),
    )
    assert result.metrics["device"] == "a GPU" and result.metrics["folded_percent"] == 0
    assert result.metrics["descent"]["evaluations"] > 0


@SIZES
@pytest.mark.parametrize("options", [{}, {"edges": True, "passes": 2, "integrate": True}], ids=str)
def test_a_network_and_steps_from_there(gpu, shape, options):
    network = build_model("lunet", dimensions=len(shape), widths=(4, 8), **options).to(gpu)
    images = [torch.from_numpy(blob(at, shape)).to(gpu) for at in (5, 7)]
    options = {"refine": 2, "guarantee": True, "device": "cuda"}
    result = diffreg.register(*images, network=network, **options)
    assert result.metrics["device"] == "a GPU" and isinstance(result.warped, OnGpu)


@SIZES
@pytest.mark.filterwarnings("ignore:.*lie outside the grid of a field")
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "label", "bspline"])
def test_resampling(gpu, shape, interpolation):
    image = diffreg.image((10 * blob(6, shape)).round())
    u = torch.rand(1, len(shape), *shape, generator=torch.Generator().manual_seed(0))
    shift = np.eye(4)
    shift[0, 3] = 0.6
    by = [Field(u, image.grid), Affine(shift), Field(u, image.grid)]
    found, expected = (
        resample(image, image, by, interpolation, device=device).data for device in ("cuda", "cpu")
    )
    assert found.is_cpu and torch.equal(found, expected)


@pytest.mark.parametrize("amplitude", [0.3, 2.0])
@pytest.mark.parametrize("size", [(11, 12), (5, 6, 7)], ids=str)
def test_certificates_and_repairs(gpu, size, amplitude):
    u = torch.rand(1, len(size), *size, generator=torch.Generator().manual_seed(0)) - 0.5
    there = (amplitude * u).to(gpu)
    found, expected = (fields.fold_certificate(each) for each in (there, amplitude * u))
    assert str(found) == str(expected)
    repaired = fields.make_diffeomorphic(there)
    assert repaired.certificate.passes and repaired.displacement.device == GPU
    assert fields.largest_safe_scale(there) > 0


def training(tmp_path, **sections):
    """Settings of a run on the GPU, of three images that are held there."""
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for name, at in (("a", 11.0), ("b", 13.0), ("c", 12.0)):
        np.savez(folder / f"{name}.npz", head(at))
    base = config_of(folder, tmp_path / "run", steps=9, device="cuda", graph=False)
    plain = base.to_dict()
    return with_settings(base, **{name: {**plain[name], **t} for name, t in sections.items()})


def steps_of(run):
    """Two steps; the first looks at things once."""
    run.take(1)
    WAITS.clear()
    run._take_step()
    run._take_step()
    assert WAITS == []
    assert len(list(run._read_steps())) == 2


SECTIONS = [
    {},
    {"optimizer": {"average": 0.9, "clip_norm": 1.0, "weight_decay": 0.1}},
    {"objective": {"similarity": {"ncc": 1.0, "lncc": 0.2}, "inverse_consistency": 1.0}},
    {"objective": {"similarity": "mi"}},
    {"objective": {"similarity": {"ngf": 1.0, "ssd": 1.0, "smooth_pls": 1.0}}},
    {"model": {"integrate": True, "half_resolution": True}},
    {
        "model": {"widths": [4, 8, 8], "edges": True, "passes": 2},
        "training": {"accumulate": 2},
    },
]


@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_steps(gpu, tmp_path, sections):
    steps_of(trainer(training(tmp_path, **sections)))


@pytest.mark.parametrize("name", ["lunet", "sn"])
def test_steps_of_volumes(gpu, tmp_path, name):
    folder = tmp_path / "volumes"
    folder.mkdir()
    for k in range(3):
        np.savez(folder / f"{k}.npz", blob(5 + k, VOLUME).astype(np.float32))
    augmentation = {"amplitude": 0.5, "sigma": 3.0, "flip_axes": [0, 1, 2]}
    config = training(tmp_path, data={"images": [str(folder)]}, augmentation=augmentation)
    model = {"name": name, "dimensions": 3}
    steps_of(trainer(Config.from_dict({**config.to_dict(), "model": model})))


@pytest.mark.parametrize("kept", [False, True], ids=["held", "from a cache"])
def test_steps_with_what_is_known(gpu, tmp_path, kept):
    """Masks, labels and landmarks; images of a cache are sent for each step."""
    data = {"images": [str(known_of_some(tmp_path))]}
    data |= {"cache": str(tmp_path / "cache")} if kept else {}
    config = training(tmp_path, data=data, objective={**KNOWN, "inverse_consistency": 0.5})
    steps_of(trainer(with_settings(config, augmentation={"crop": [16, 12]})))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_steps_of_data_of_ones_own_and_their_validation(gpu, tmp_path):
    sections = {**training(tmp_path).to_dict(), "augmentation": {}}
    run = Trainer(Config.from_dict(sections), Pairs(), Pairs(3), progress=False)
    steps_of(run)
    assert run.validate().total > 0
