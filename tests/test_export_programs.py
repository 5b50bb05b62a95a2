"""Networks as torch's programs and as ONNX: of any size, the same displacements."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from diffreg.fields import integrate
from diffreg.models import build_model
from diffreg.ops import warp
from diffreg.training.export import exported, shape_of, write_program
from diffreg.training.onnx import translated, write_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "lunet, images": ("lunet", 2, {"widths": (2, 4)}),
    "lunet, images, half": ("lunet", 2, {"widths": (2, 4), "half_resolution": True}),
    "lunet, volumes, integrated": ("lunet", 3, {"widths": (2, 4), "integrate": True}),
    "lunet, volumes, integrated, half": (
        *("lunet", 3),
        {"widths": (2, 4), "integrate": True, "half_resolution": True},
    ),
    "lunet, images, edges": ("lunet", 2, {"widths": (2, 4), "edges": True}),
    "lunet, volumes, edges, half, twice": (
        *("lunet", 3),
        {"widths": (2, 4), "edges": True, "half_resolution": True, "passes": 2},
    ),
    "sn, images, integrated, half": ("sn", 2, {"integrate": True, "half_resolution": True}),
    "sn, volumes": ("sn", 3, {}),
}
SHAPES = {
    2: [(1, 16, 24), (3, 37, 50), (2, 9, 131), (1, 5, 3), (1, 1, 1)],
    3: [(1, 16, 8, 12), (2, 13, 18, 21), (1, 1, 5, 3)],
}


def network_of(name, dimensions, settings):
    """Fresh, with a head that moves by 3 voxels; in the memory order of load_network."""
    torch.manual_seed(0)
    network = build_model(name, dimensions=dimensions, **settings).eval()
    with torch.no_grad():
        found = network(*torch.rand(2, 1, 1, *(16,) * dimensions))
        network.head.weight.mul_(3 / found.abs().max())
    order = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    return network.to(memory_format=order)


@pytest.fixture(scope="module")
def programs():
    """Exported once, for both kinds of files."""
    made = {}

    def program(name):
        if name not in made:
            network = network_of(*NETWORKS[name])
            made[name] = network, exported(network, NETWORKS[name][1], warped="half" in name)
        return made[name]

    return program


def compared(network, run, dimensions, compare):
    """Calls compare(of the program, of the network) at every shape; returns the largest voxels."""
    largest = 0.0
    for batch, *size in SHAPES[dimensions]:
        moving, fixed = torch.rand(2, batch, 1, *size)
        with torch.no_grad():
            displacement = network(moving, fixed)
        found = run(moving, fixed)
        compare(found[0], displacement)
        if len(found) == 2:
            compare(found[1], warp(moving, displacement))
        largest = max(largest, displacement.abs().max().item())
    return largest


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("twice" in name)) for name in NETWORKS]
)
def test_a_program_of_any_size_gives_the_bits_of_the_network(programs, tmp_path, name):
    network, program = programs(name)
    write_program(tmp_path / "net.pt2", program, {"a": "b"})
    extra = {"diffreg.json": ""}
    loaded = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    assert json.loads(extra["diffreg.json"]) == {"a": "b"}

    def run(*images):
        found = loaded(*images)
        return found if isinstance(found, tuple) else (found,)

    def same(found, own):
        if own.ndim == 5 and len(own) == 1:  # which the network convolves in two slabs
            torch.testing.assert_close(found, own, rtol=0, atol=1e-4 * own.abs().max().item())
        else:
            assert torch.equal(found, own)

    assert compared(network, run, NETWORKS[name][1], same) > 1
    axes = ["Z", "Y", "X"][-NETWORKS[name][1] :]
    assert shape_of(program) == ["N", 1, *axes]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_of_any_size_gives_the_network_s_displacement(programs, tmp_path, name):
    runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime: diffreg[onnx]")
    network, program = programs(name)
    assert write_onnx(tmp_path / "net.onnx", program, {"a": "b"}) < 1e-4
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"a": "b"}

    def run(moving, fixed):
        images = {"moving": moving.numpy(), "fixed": fixed.numpy()}
        return [torch.from_numpy(found) for found in session.run(None, images)]

    def near(theirs, ours):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)

    assert compared(network, run, NETWORKS[name][1], near) > 1


def has_no_form(interpolation, padding, moving):
    """GridSample is cubic in 2-D alone, and mirrors what is nearest elsewhere at halves."""
    if interpolation == "cubic":
        return moving.ndim == 5
    return (interpolation, padding) == ("nearest", "reflection")


class Warps(nn.Module):
    """Every way to warp that has a form in ONNX, and `integrate`."""

    def forward(self, moving, displacement):
        found = []
        for padding in ("border", "zeros", "reflection"):
            for interpolation in ("linear", "nearest", "cubic"):
                if not has_no_form(interpolation, padding, moving):
                    found.append(warp(moving, displacement, interpolation, padding))
        return *found, integrate(displacement, 7)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[(9, 14), (23, 8)], [(5, 9, 6), (4, 7, 11)]], ids=["2-D", "3-D"])
def test_every_warp_becomes_a_grid_sample(tmp_path, sizes):
    runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime: diffreg[onnx]")
    of_moving, of_fixed = sizes
    dimensions = len(of_moving)

    def case(batch, of_moving, of_fixed):
        moving = torch.rand(batch, 2, *of_moving)
        displacement = 5 * torch.randn(batch, dimensions, *of_fixed)
        displacement[:, :, 0] = displacement[:, :, 0].round() + 0.5  # halves, for "nearest"
        return moving, displacement

    free = dict.fromkeys((0, *range(2, 2 + dimensions)), torch.export.Dim.AUTO)
    with torch.no_grad():
        program = torch.export.export(
            Warps(), case(2, of_moving, of_fixed), dynamic_shapes=(free, free)
        )
    names = [f"out{k}" for k in range(len(program.graph_signature.user_outputs))]
    translated(program, names).save(tmp_path / "warps.onnx")
    session = runtime.InferenceSession(tmp_path / "warps.onnx")
    for batch in (1, 3):
        moving, displacement = case(batch, of_fixed, of_moving)
        images = {"moving": moving.numpy(), "fixed": displacement.numpy()}
        found = session.run(None, images)
        for theirs, ours in zip(found, Warps()(moving, displacement), strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=2e-5)


def test_a_program_of_a_plain_network_needs_torch_alone(programs, tmp_path):
    network, program = programs("lunet, images")
    write_program(tmp_path / "net.pt2", program, {})
    moving, fixed = torch.rand(2, 1, 1, 20, 30)
    with torch.no_grad():
        torch.save((moving, fixed, network(moving, fixed)), tmp_path / "case.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1); *images, found = torch.load('case.pt');"
        "program = torch.export.load('net.pt2').module();"
        "assert torch.equal(program(*images), found); assert 'diffreg' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_file_appears_whole_or_not_at_all(programs, tmp_path, monkeypatch):
    def full(program, file, **more):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "net.pt2").write_text("before")
    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_program(tmp_path / "net.pt2", programs("lunet, images")[1], {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
