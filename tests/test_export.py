"""`diffreg export`: small checkpoints, what the command says, networks of one's own."""

import json
import sys

import pytest
import torch
from runs import config_of, trainer, with_settings
from test_trainer import save_images

from diffreg.cli.main import main
from diffreg.ops import warp
from diffreg.training import load_network
from diffreg.training.checkpoint import read_checkpoint, write_checkpoint
from diffreg.training.config import Config
from diffreg.training.onnx import OUTPUTS

pytestmark = pytest.mark.usefixtures("one_thread")


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
        *("validation", "unvalidated"),
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
        (("-o", "net.pt2"), "net.pt2: the name must end in .pt; for .pt2 give --pt2\n"),
        (("-o", "net.onnx"), "net.onnx: the name must end in .pt; for .onnx give --onnx\n"),
        (("-o", "net.pt", "--onnx"), "in .onnx; for .pt leave out --pt2 and --onnx\n"),
        (("-o", "net", "--onnx"), "net: the name must end in .onnx\n"),
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
