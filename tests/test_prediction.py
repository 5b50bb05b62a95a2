"""--refine: variational steps from a network's displacement, of a pair and of a manifest."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fields.drawn import smooth
from test_registration import FIXED, MOVING, Shift, lambda_module
from torch import nn

from diffreg.cli.main import main
from diffreg.data.prepare import prepare, relative_spacing
from diffreg.data.transforms import read_displacement
from diffreg.data.voxels import Voxels
from diffreg.fields import fold_certificate
from diffreg.losses import Objective
from diffreg.models import build_model
from diffreg.registration import predict as prediction
from diffreg.registration import register, register_batch, register_variational
from diffreg.training.checkpoint import load_network, write_checkpoint
from diffreg.training.config import Config

pytestmark = pytest.mark.usefixtures("one_thread")

FOLDS = smooth(FIXED.shape, 20.0, 0)


class Constant(nn.Module):
    """A network that says the same of every pair."""

    def __init__(self, displacement):
        super().__init__()
        self.displacement = displacement

    def forward(self, moving, fixed):
        return self.displacement.expand(len(fixed), -1, -1, -1)


@pytest.fixture
def asked(monkeypatch):
    """What the refinement asks of the variational method."""
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return register_variational(*arguments)

    monkeypatch.setattr(prediction, "register_variational", spy)
    return calls


# one pair


def test_the_steps_start_at_the_networks_displacement():
    plain = register(MOVING, FIXED, network=Shift(0.5))
    result = register(MOVING, FIXED, network=Shift(0.5), refine=3)
    pair = prepare(MOVING, FIXED)
    objective = Objective("ncc", spacing=relative_spacing(FIXED))
    expected = register_variational(
        *(pair.moving_values, pair.fixed_values, objective),
        iterations=3,
        start=plain.displacement,
    )
    assert torch.equal(result.displacement, expected)
    assert (plain.method, result.method) == ("network", "refined network")
    assert "refinement" not in plain.metrics
    assert result.metrics["after"]["ncc"] > plain.metrics["after"]["ncc"]
    said = result.metrics["refinement"]
    for when, u in (("before", plain.displacement), ("after", expected)):
        total = objective(pair.moving_values, pair.fixed_values, u).total.item()
        assert said[f"objective_{when}"] == total
    assert said["at_most_steps"] == 3
    assert said["objective_after"] < said["objective_before"]


def test_more_steps_go_further():
    results = [register(MOVING, FIXED, network=Shift(0.0), refine=steps) for steps in (2, 10)]
    few, many = (result.metrics["refinement"]["objective_after"] for result in results)
    assert many < few


@pytest.mark.parametrize("guarantee", [False, True])
def test_a_network_that_folds_is_unfolded(guarantee):
    assert fold_certificate(FOLDS).folded_cells > 0
    result = register(MOVING, FIXED, network=Constant(FOLDS), refine=4, guarantee=guarantee)
    certificate = fold_certificate(result.displacement)
    assert certificate.folded_cells == 0
    assert ("repair" in result.metrics) == guarantee
    if guarantee:
        assert certificate.passes
        assert result.metrics["repair"]["before"] != "folded"


def test_the_objective_is_the_given_one(asked):
    pls = Objective("pls", (60, 2, 20, 5), "zeros", "log2", 0.1)
    register(MOVING, FIXED, network=Shift(0.5), objective=pls, refine=1)
    register(MOVING, FIXED, network=Shift(0.5), objective=pls.with_spacing(3.0), refine=1)
    proportions, given = (call[2] for call in asked)
    expected = pls.with_spacing(relative_spacing(FIXED))
    assert proportions._options() == expected._options()
    assert given.spacing == 3.0


def test_what_knows_no_contrast_is_refined_by_what_suits_the_pair(asked):
    """By what `register` minimises there, unless it does not know such voxels."""
    middle = (FIXED.data.min() + FIXED.data.max()) / 2
    pls, other = Objective("pls"), replace(FIXED, data=(FIXED.data - middle) ** 2)
    options = {"network": Shift(0.5), "objective": pls, "refine": 1, "affine": "none"}
    own, within, across = (
        register(moving, FIXED, contrast_free=free, **options)
        for moving, free in ((MOVING, False), (MOVING, True), (other, True))
    )
    usual = register(MOVING, FIXED, levels=1, iterations=1, affine="none")
    names = [["pls"], ["lncc", "ncc"], ["lncc", "mi", "pls"]]
    assert [sorted(call[2].similarity) for call in asked] == names
    assert within.metrics["objective"].items() <= usual.metrics["objective"].items()
    assert (own.similarity, within.similarity) == ("as trained", "ncc+lncc")
    assert "contrast" not in own.metrics
    assert not within.metrics["contrast"]["across"] and across.metrics["contrast"]["across"]
    thin = Voxels((1.0, 8.0))  # what it knows
    register(MOVING, FIXED, contrast_free=True, trained_on=thin, **options)
    assert list(asked[-1][2].similarity) == ["pls"]


def test_the_mask_counts(asked):
    mask = replace(FIXED, data=torch.zeros_like(FIXED.data))
    mask.data[..., 20:40, :] = 1
    result = register(MOVING, FIXED, network=Shift(0.5), fixed_mask=mask, refine=1)
    assert torch.equal(asked[0][5], result.mask)


def test_both_ways_are_refined(asked):
    shift = Shift(0.5)
    plain = register(MOVING, FIXED, network=shift, both_ways=True)
    refined = register(MOVING, FIXED, network=shift, both_ways=True, refine=5)
    there, back = asked
    assert torch.equal(there[0], back[1]) and torch.equal(there[1], back[0])
    # Two shifts of half a voxel the same way do not cancel.
    assert refined.metrics["inverse_consistency_mm"] < plain.metrics["inverse_consistency_mm"]


@pytest.mark.alone
def test_the_time_includes_the_steps(monkeypatch):
    def slow(*arguments):
        time.sleep(0.2)
        return arguments[-1]

    monkeypatch.setattr(prediction, "register_variational", slow)
    results = register_batch([prepare(MOVING, FIXED)] * 2, Batch(0.5), refine=1)
    assert all(0.2 <= result.seconds < 0.4 for result in results)


class Batch(Shift):
    """Shift, for several pairs at once."""

    def forward(self, moving, fixed):
        return super().forward(moving, fixed).expand(len(fixed), -1, -1, -1)


def test_a_batch_is_refined_pair_by_pair():
    swapped = prepare(FIXED, MOVING)
    both = register_batch([prepare(MOVING, FIXED), swapped], Batch(0.5), refine=2)
    alone = register(FIXED, MOVING, network=Shift(0.5), refine=2)
    assert torch.equal(both[1].displacement, alone.displacement)
    assert not torch.equal(both[0].displacement, both[1].displacement)


def test_a_displacement_that_is_not_finite_fails_its_pair_alone():
    def forward(moving, fixed):
        u = torch.zeros(len(fixed), 2, *fixed.shape[2:])
        u[0, 0, 0, 0] = torch.nan
        return u

    network = lambda_module(forward)
    first, second = register_batch([prepare(MOVING, FIXED)] * 2, network, refine=1)
    assert isinstance(first, ValueError) and "NaN or infinite" in str(first)
    assert second.method == "refined network"


def test_progress_is_that_of_the_steps():
    calls = []
    register(MOVING, FIXED, network=Shift(0.5), refine=3, progress=lambda *c: calls.append(c))
    assert calls[-1] == (3, 3)


def test_what_cannot_be_refined_is_refused():
    with pytest.raises(ValueError, match="refine needs a network"):
        register(MOVING, FIXED, refine=1)
    with pytest.raises(ValueError, match="refine must be at least 0, got -1"):
        register(MOVING, FIXED, network=Shift(0.5), refine=-1)


# the command line


SETTINGS = {
    "model": {"name": "lunet", "widths": [2, 4]},
    "objective": {"similarity": "ssd", "weights": [60, 2, 20, 5], "penalty": "log2"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images, a manifest of two pairs, and a checkpoint of a network that moves a little."""
    nib = pytest.importorskip("nibabel")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for name, image in (("moving", MOVING), ("fixed", FIXED)):
        nib.save(nib.Nifti1Image(image.data[0, 0].numpy(), image.affine), f"{name}.nii.gz")
    rows = ["moving,fixed", "moving.nii.gz,fixed.nii.gz", "fixed.nii.gz,moving.nii.gz"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    torch.manual_seed(0)
    network = build_model("lunet", widths=(2, 4))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    config = Config.from_dict(SETTINGS).to_dict()
    write_checkpoint("c.pt", {"config": config, "weights": network.state_dict(), "step": 3})
    return tmp_path


def run(*words):
    return main([str(word) for word in words])


PAIR = ("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out")
PAIRS = ("register", "pairs.csv", "-o", "out")
EVALUATE = ("evaluate", "pairs.csv", "-o", "out")


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_checkpoint_has_its_objective(folder):
    objective = load_network("c.pt")["objective"]
    assert objective.similarity == {"ssd": 1.0}
    assert tuple(objective.weights) == (60, 2, 20, 5)
    assert (objective.penalty, objective.padding, objective.spacing) == ("log2", "border", None)


def test_a_pair_is_refined_with_the_objective_of_its_network(folder, asked, capsys):
    assert run(*PAIR, "--checkpoint", "c.pt", "--refine", 4, "--guarantee") == 0
    assert "(refined network, ssd)" in capsys.readouterr().out
    ((*_, objective, levels, steps, _, _, start),) = asked
    assert (objective.similarity, levels, steps) == ({"ssd": 1.0}, 1, 4)
    assert objective.spacing == (1.0, 1.25) and objective.penalty == "log2"
    assert start.abs().max() > 0.01
    metrics = metrics_of(folder / "out")
    assert metrics["method"] == "refined network"
    assert metrics["refinement"]["objective_after"] < metrics["refinement"]["objective_before"]
    assert metrics["certificate"]["verdict"] == "homeomorphism"
    written, _ = read_displacement("out/displacement.nii.gz")
    assert np.abs(written.numpy() - start.numpy()).max() > 0.1
    page = (folder / "out" / "report.html").read_text()
    assert "objective, refined by at most 4 steps" in page and "refined network" in page


def test_none_is_the_network_alone(folder, asked):
    assert run(*PAIR, "--checkpoint", "c.pt", "--refine", 0) == 0
    assert asked == []
    metrics = metrics_of(folder / "out")
    assert metrics["method"] == "network" and "refinement" not in metrics


def test_the_pairs_of_a_manifest_are_refined(folder, asked, capsys):
    words = (*PAIRS, "--checkpoint", "c.pt", "--refine", 2)
    assert run(*words) == 0
    assert [call[2].similarity for call in asked] == [{"ssd": 1.0}] * 2
    found = sorted((folder / "out").glob("*/metrics.json"))
    for path in found:
        said = json.loads(path.read_text())["refinement"]
        assert said["at_most_steps"] == 2
        assert said["objective_after"] < said["objective_before"]
    page = (folder / "out" / "report.html").read_text()
    assert "Method: network c.pt, refined by 2 steps" in page
    capsys.readouterr()
    assert run(*words) == 0
    assert "2 of 2 pairs were complete and are kept" in capsys.readouterr().err
    assert run(*PAIRS, "--checkpoint", "c.pt", "--refine", 3) == 0
    assert "kept" not in capsys.readouterr().err


def test_evaluate_refines_both_ways(folder, asked):
    assert run(*EVALUATE, "--checkpoint", "c.pt", "--refine", 2) == 0
    assert len(asked) == 4
    found = json.loads((folder / "out" / "evaluation.json").read_text())
    assert found["method"] == "network c.pt, refined by 2 steps"
    assert found["summary"]["folded_percent"]["after"]["mean"] == 0
    assert found["summary"]["inverse_consistency"]["pairs"] == 2


@pytest.mark.parametrize("command", [PAIR, PAIRS, EVALUATE], ids=["pair", "manifest", "evaluate"])
@pytest.mark.parametrize(
    "words, message",
    [
        (("--refine", "5"), "--refine needs --checkpoint"),
        (("--refine", "5", "--method", "variational"), "--refine needs --checkpoint"),
        (("--refine", "-1"), "--refine must be at least 0, got -1"),
        (("--refine", "-1", "--checkpoint", "c.pt"), "--refine must be at least 0, got -1"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, command, words, message):
    assert run(*command, *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffreg: error: ") and message in said and said.count("\n") == 1
    assert not (folder / "out").exists()


def test_given_displacements_are_not_refined(folder, capsys):
    (folder / "given").mkdir()
    assert run(*EVALUATE, "--displacements", "given", "--refine", 2) == 2
    assert "leave out --refine" in capsys.readouterr().err
