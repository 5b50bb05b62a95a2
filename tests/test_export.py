"""Networks out of their runs: small checkpoints, torch's programs, ONNX; the same displacements."""

import json
import subprocess
import sys

import pytest
import torch
from test_trainer import config_of, save_images, trainer
from test_training_options import with_settings
from torch import nn

from diffreg.cli.main import main
from diffreg.fields import integrate
from diffreg.models import build_model
from diffreg.ops import warp
from diffreg.training import load_network
from diffreg.training.checkpoint import read_checkpoint, write_checkpoint
from diffreg.training.config import Config
from diffreg.training.export import exported, shape_of, write_program
from diffreg.training.onnx import OUTPUTS, translated, write_onnx

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


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


@pytest.fixture
def checkpoint(images, tmp_path):
    """Of a run of bfloat16, which integrates at half resolution and averages its weights."""
    config = with_settings(
        config_of(images, tmp_path / "run", precision="bfloat16"),
        model={"integrate": True, "half_resolution": True},
        optimizer={"average": 0.5},
    )
    trainer(config).train()
    return tmp_path / "run" / "last.pt"


def run(*words):
    return main([str(word) for word in words])


def test_a_small_checkpoint_registers_as_the_run_s(checkpoint, images, tmp_path, capsys):
    net = tmp_path / "net.pt"
    assert run("export", checkpoint, "-o", net) == 0
    assert capsys.readouterr().out.startswith(f"{net}: 0.0")
    before, after = read_checkpoint(checkpoint), read_checkpoint(net)
    assert set(before) - set(after) == {
        *("optimizer", "trained", "learning_rate", "epoch", "place_in_epoch", "pairs"),
        "validation",
    }
    assert net.stat().st_size < checkpoint.stat().st_size / 2
    assert str(tmp_path).encode() not in net.read_bytes()
    assert after["config"]["normalization"] == before["config"]["normalization"]
    ours, theirs = load_network(net), load_network(checkpoint)
    pair = torch.rand(2, 1, 1, 24, 20)
    with torch.no_grad():
        assert torch.equal(ours["network"](*pair), theirs["network"](*pair))
    assert ours["normalization"] == theirs["normalization"]
    out = tmp_path / "out"
    words = ("register", images / "a.nii", images / "b.nii", "-o", out, "--checkpoint", net)
    assert run(*words, "--no-report") == 0
    assert (out / "displacement.nii.gz").exists()


def test_an_exported_checkpoint_begins_a_run_and_continues_none(checkpoint, images, tmp_path):
    net = tmp_path / "net.pt"
    run("export", checkpoint, "-o", net)
    sections = Config.from_dict(read_checkpoint(checkpoint)["config"]).to_dict()
    sections["training"] |= {"out": str(tmp_path / "other"), "start": str(net)}
    began = trainer(Config.from_dict(sections))
    weights = read_checkpoint(net)["weights"]
    assert all(torch.equal(weights[key], v) for key, v in began.network.state_dict().items())
    (tmp_path / "third").mkdir()
    net.rename(tmp_path / "third" / "last.pt")
    sections["training"] |= {"out": str(tmp_path / "third"), "start": "", "resume": True}
    with pytest.raises(ValueError, match="was exported, without the optimiser"):
        trainer(Config.from_dict(sections))


@pytest.mark.slow
def test_the_command_writes_programs(checkpoint, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="no onnxruntime: diffreg[onnx]")
    pair = torch.rand(2, 1, 1, 24, 20)
    with torch.no_grad():
        displacement = load_network(checkpoint)["network"](*pair)
    pt2, onnx = tmp_path / "net.pt2", tmp_path / "net.onnx"
    assert run("export", checkpoint, "-o", pt2, "--pt2", "--warped") == 0
    said = "(moving, fixed) -> (displacement, warped), images (N, 1, Y, X)\n"
    assert capsys.readouterr().out == f"{pt2}: {said}"
    found = torch.export.load(pt2).module()(*pair)
    assert torch.equal(found[0], displacement) and torch.equal(found[1], warp(pair[0], found[0]))
    assert run("export", checkpoint, "-o", onnx, "--onnx") == 0
    said = capsys.readouterr()
    assert "-> displacement, images (N, 1, Y, X); onnxruntime differs by" in said.out
    assert said.err == ""
    import onnx as library

    model = library.load(onnx)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["normalization"])["upper"] == 99.5
    assert [entry.name for entry in model.graph.output] == OUTPUTS[:1]
    assert not [node for node in model.graph.node if node.domain]  # ONNX's own operators


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


OWN = """
import torch
from torch import nn
from diffreg.ops import gradient_scale, warp

class Own(nn.Module):
    def __init__(self, how=""):
        super().__init__()
        self.layer, self.how = nn.Conv2d(2, 2, 3, padding=1), how

    def forward(self, moving, fixed):
        found = self.layer(torch.cat([moving, fixed], 1))
        if self.how == "fixed":
            found = found + torch.zeros(2, 40, 24)
        if self.how == "random":
            found = found + torch.rand_like(found)
        if self.how == "branch" and found.sum() > 0:
            found = 2 * found
        if self.how == "mirrored":
            found = warp(found, found, "nearest", "reflection")
        if self.how == "scaled":
            found = found * gradient_scale(moving).view(-1, 1, 1, 1)
        return found
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own(how): a checkpoint of a network that is somebody's own."""
    (tmp_path / "exported_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def checkpoint(how):
        import exported_nets

        path = tmp_path / "own.pt"
        name = "exported_nets:Own"
        config = Config.from_dict({"model": {"name": name, "how": how}})
        weights = exported_nets.Own(how).state_dict()
        contents = {"needs": {name: "mine 1.0"}, "weights": weights, "optimizer": {}}
        write_checkpoint(path, {"config": config.to_dict(), **contents})
        return path

    return checkpoint


def test_networks_of_one_s_own(own, tmp_path, capsys):
    path, out = own(""), tmp_path / "net.pt2"
    assert run("export", path, "-o", tmp_path / "net.pt") == 0  # nothing is imported
    assert read_checkpoint(tmp_path / "net.pt")["needs"] == {"exported_nets:Own": "mine 1.0"}
    capsys.readouterr()
    assert run("export", path, "-o", out, "--pt2") == 2
    assert "'exported_nets:Own' ('mine 1.0'); if you know" in capsys.readouterr().err
    assert run("export", path, "-o", out, "--pt2", "--trust") == 0
    assert capsys.readouterr().out.endswith("images (N, 1, Y, X)\n")
    path = own("fixed")
    assert run("export", path, "-o", out, "--pt2", "--trust") == 2
    said = "does not take images of 37x50 nor 64x96 (RuntimeError: The size of tensor a (96) must"
    assert said in capsys.readouterr().err
    assert run("export", path, "-o", out, "--pt2", "--trust", "--size", "40", "24") == 0
    assert capsys.readouterr().out.endswith("images (N, 1, Y, X)\n")
    program = torch.export.load(out).module()
    assert program(*torch.rand(2, 3, 1, 40, 24)).shape == (3, 2, 40, 24)
    with pytest.raises(AssertionError, match=r"Guard failed: moving\.size\(\)\[2\] == 40"):
        program(*torch.rand(2, 3, 1, 64, 96))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "random",
            "gives another displacement than the network at (37, 50): does the network draw",
        ),
        ("branch", "cannot be exported by torch.export: Could not guard on data-dependent"),
    ],
)
def test_networks_that_no_program_can_be(own, tmp_path, capsys, how, said):
    out = tmp_path / "net.pt2"
    assert run("export", own(how), "-o", out, "--pt2", "--trust") == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_operators_that_onnx_has_no_form_of(own, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="no onnxscript: diffreg[onnx]")
    out = tmp_path / "net.onnx"
    assert run("export", own("scaled"), "-o", out, "--onnx", "--trust") == 2
    assert "written as ONNX: " in (said := capsys.readouterr().err) and "gradient_scale" in said
    assert run("export", own("mirrored"), "-o", out, "--onnx", "--trust") == 2
    assert "written as ONNX: " in (said := capsys.readouterr().err) and "nearest, ref" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "net.pt2"), "net.pt2: the name must end in .pt\n"),
        (("-o", "net.pt", "--onnx"), "net.pt: the name must end in .onnx\n"),
        (("-o", "none/net.pt"), "none does not exist"),
        (("-o", "net.pt", "--warped"), "--warped and --size are of a program"),
        (("-o", "net.pt2", "--pt2", "--size", "3"), "--size must be 2 numbers of 1 or more"),
        (("-o", "run.pt"), "run.pt is the checkpoint of a run, which could not go on"),
        (("-o", "folder.pt"), "folder.pt is a folder"),
    ],
)
def test_mistakes_are_one_line(own, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    own("").rename("run.pt")
    (tmp_path / "folder.pt").mkdir()
    assert run("export", "lunet-cardiac-mr", *words) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_what_writes_onnx_is_named_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run("export", "lunet-cardiac-mr", "-o", tmp_path / "net.onnx", "--onnx") == 2
    said = "onnx is needed for writing ONNX: pip install 'diffreg[onnx]'"
    assert said in capsys.readouterr().err


def test_a_file_appears_whole_or_not_at_all(programs, tmp_path, monkeypatch):
    def full(program, file, **more):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "net.pt2").write_text("before")
    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_program(tmp_path / "net.pt2", programs("lunet, images")[1], {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
