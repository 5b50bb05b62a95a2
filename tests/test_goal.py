"""What is minimised and how long: a preset, its parts, mixtures, levels; and the command line."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from test_registration import FIXED, MOVING
from torch import nn

from diffreg.cli.main import main
from diffreg.data.prepare import prepare
from diffreg.losses import PRESETS, Objective
from diffreg.ops import Weights
from diffreg.registration import register, register_variational
from diffreg.registration.goal import Goal, check_mapping, chosen
from diffreg.registration.schedule import Schedule, schedule_of

pytestmark = pytest.mark.usefixtures("one_thread")
NCC = Objective("ncc")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "best"}, ValueError, "preset must be one of 'auto', .*, got 'best'"),
        ({"similarity": ["ncc"]}, TypeError, "similarity must be a name, or a mapping .*got list"),
        ({"similarity": {"ncd": 1}}, ValueError, "similarity must be one of 'ssd', .*got 'ncd'"),
        ({"similarity": {}}, ValueError, "similarity must name at least one measure"),
        ({"similarity": {"ncc": np.nan}}, ValueError, "finite factors, got nan for 'ncc'"),
        ({"weights": "paper"}, TypeError, "weights must be 4 numbers, got 'paper': preset takes a"),
        ({"weights": (1, 2, 3)}, ValueError, "4 numbers >= 0 .*similarity, diffusion"),
        ({"weights": (1, -2, 3, 4)}, ValueError, "4 numbers >= 0"),
        ({"preset": "paper", "objective": NCC}, ValueError, "preset and objective both say"),
        ({"weights": 4 * [1], "objective": NCC}, ValueError, "weights and objective both say"),
        ({"similarity": {"ncc": 1}, "objective": NCC}, ValueError, "leave out {'ncc': 1}"),
        ({"levels": 0}, ValueError, "levels must be at least 1, got 0"),
        ({"levels": "3"}, TypeError, "levels must be int, got str"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"iterations": "40,40"}, TypeError, "iterations must be int, got str"),
        ({"iterations": (40, 0)}, ValueError, "iterations of a level must be at least 1, got 0"),
        ({"iterations": (40, 2.5)}, TypeError, "iterations of a level must be int, got float"),
        ({"iterations": ()}, ValueError, r"one number, or from 1 to 6, .* got \[\]"),
        ({"iterations": (40, 30), "levels": 1}, ValueError, r"from 1 to 1, .* got \[40, 30\]"),
        ({"network": nn.Identity(), "preset": "paper"}, ValueError, "preset is of the variational"),
        ({"network": nn.Identity(), "weights": 4 * [1]}, ValueError, "weights is of the variat"),
    ],
)
def test_a_goal_that_is_none(options, error, message):
    with pytest.raises(error, match=message):
        register(MOVING, FIXED, **options)


def goal_of(**options):
    """The objective of the pair, as `register` has it."""
    return chosen(prepare(MOVING, FIXED), Goal(**options).checked())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_similarity_and_weights_which_give_way_one_by_one(name):
    preset = PRESETS[name]
    whole = goal_of(preset=name)
    assert whole.objective.similarity == dict(preset.similarity) and whole.metrics == {}
    assert whole.objective.weights == preset.weights
    assert whole.objective.threshold == Objective(weights=name).threshold
    other = goal_of(preset=name, similarity={"ssd": 2, "ngf": 0.5}).objective
    assert other.similarity == {"ssd": 2, "ngf": 0.5} and other.weights == preset.weights
    assert other.threshold == whole.objective.threshold
    assert other.window == whole.objective.window == preset.window
    other = goal_of(preset=name, weights=[1, 2, 3, 4]).objective
    assert other.threshold == whole.objective.threshold
    assert other.similarity == dict(preset.similarity) and other.weights == Weights(1, 2, 3, 4)


def test_nothing_said_is_what_the_contrasts_ask_for():
    found = goal_of(preset="auto", similarity="auto")
    assert not found.metrics["across"] and found.metrics == goal_of().metrics
    with_weights = goal_of(weights=[1, 2, 3, 4])
    assert with_weights.metrics == found.metrics
    assert with_weights.objective.similarity == found.objective.similarity
    assert with_weights.objective.weights == Weights(1, 2, 3, 4)


def test_a_mixture_has_the_weights_of_its_kind():
    across = goal_of(similarity={"ncc": 1, "mi": 0.5}).objective
    assert across.weights == goal_of(similarity="mi").objective.weights
    within = goal_of(similarity={"lncc": 1, "ncc": 0.5}).objective
    assert within.weights == goal_of(similarity="lncc").objective.weights != across.weights


def test_levels_and_iterations():
    assert schedule_of() == Schedule()
    assert schedule_of().on((64, 64)) == (3, (40, 40, 20), 0)
    assert schedule_of().on((256, 128)) == (4, (40, 40, 40, 20), 0)
    assert schedule_of().on((40, 64)) == (2, 60, 0)  # as there are few levels
    assert schedule_of(1).on((256, 256)) == (1, 60, 0)
    assert schedule_of(2, 7) == Schedule(2, 7)
    assert schedule_of(3, [9, 8]).on((64, 64)) == (3, (9, 9, 8), 0)
    assert Schedule(3, (9, 8, 7)).on((40, 64)) == (2, (8, 7), 0)  # the finest are left
    assert Schedule(3, 9).on((64, 64)) == (3, 9, 0)


def test_volumes_begin_with_composed_steps():
    assert schedule_of().on((64, 64, 64)) == (3, (40, 40, 20), (100, 50, 10))
    assert schedule_of().on((160, 160, 160)) == (4, (40, 40, 40, 20), (100, 100, 50, 10))
    assert schedule_of().on((40, 64, 40)) == (2, (40, 20), (50, 10))
    assert schedule_of(1).on((64, 64, 64)) == (1, 60, 10)
    assert schedule_of(composed_steps=0).on((40, 64, 40)) == (2, 60, 0)
    assert schedule_of(composed_steps=(9, 0)).on((64, 64)) == (3, (40, 40, 20), (9, 9, 0))
    with pytest.raises(ValueError, match="composed_steps must be at least 0, got -1"):
        schedule_of(composed_steps=-1)
    with pytest.raises(ValueError, match="composed_steps must be one number, or from 1 to 2"):
        schedule_of(2, composed_steps=(1, 2, 3))


def test_the_method_takes_the_iterations_that_are_told():
    """Both know which levels a number is for."""
    images, counts = torch.rand(2, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for iterations in ((9, 8), schedule_of(3, (9, 8)).on((64, 64)).iterations):
        register_variational(
            *images, levels=3, iterations=iterations, progress=lambda *said: counts.append(said)
        )
    assert {at_most for _, at_most in counts} == {26}


def test_what_was_used_is_told():
    done = []
    options = {"preset": "paper", "similarity": {"ncc": 1.0, "ssd": 0.5}, "iterations": (3, 2)}
    result = register(MOVING, FIXED, **options, progress=lambda *step: done.append(step))
    said = result.metrics["objective"]
    assert (said["preset"], said["similarity"]) == ("paper", {"ncc": 1.0, "ssd": 0.5})
    assert said["weights"] == PRESETS["paper"].weights._asdict()
    assert (said["levels"], said["iterations"]) == (2, (3, 2))
    assert max(done) == (5, 5)
    assert result.similarity == "ncc+ssd" and "relative_ssd" in result.metrics["after"]
    named = register(MOVING, FIXED, similarity={"ncc": 1}, levels=2, iterations=4)
    assert "preset" not in named.metrics["objective"]
    alone = register(MOVING, FIXED, similarity="ncc", levels=2, iterations=(4, 4))
    assert torch.equal(alone.displacement, named.displacement)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two slices on one grid and a manifest of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for name, image in (("m", MOVING), ("f", FIXED)):
        nib.save(nib.Nifti1Image(image.data[0, 0].numpy(), image.affine), f"{name}.nii.gz")
    (tmp_path / "pairs.csv").write_text("moving,fixed\nm.nii.gz,f.nii.gz\n")
    return tmp_path


PAIR = ("register", "m.nii.gz", "f.nii.gz", "-o", "out")
MANIFEST = ("register", "pairs.csv", "-o", "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--similarity", "ncd"), "argument --similarity: must be one of auto, ssd"),
        (("--similarity", "ncc=1,ncc=2"), "a mixture such as ncc=1,lncc=0.2, got 'ncc=1,ncc=2'"),
        (("--similarity", "ncc=x"), "argument --similarity: must be one of"),
        (("--similarity", "auto=1"), "argument --similarity: must be one of"),
        (("--similarity", "ncc,"), "argument --similarity: must be one of"),
        (("--weights", "1,2,3"), "argument --weights: must be four numbers >= 0, of similarity"),
        (("--weights", "1,2,3,nan"), "argument --weights: must be four numbers"),
        (("--levels", "0"), "argument --levels: must be a whole number from 1, got '0'"),
        (
            ("--iterations", "40,"),
            "must be a whole number from 1, or several, from coarse",
        ),
        (("--iterations", "-3"), "argument --iterations: "),
        (
            ("--composed-steps", "5,x"),
            "argument --composed-steps: must be a whole number from 0, or several",
        ),
    ],
)
def test_an_option_that_is_none_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*PAIR, *words])
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize("command", [PAIR, MANIFEST, ("evaluate", "pairs.csv", "-o", "out")])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "best"), "preset must be one of 'auto', 'default'"),
        (("--iterations", "5,5", "--levels", "1"), "one number, or from 1 to 1"),
        (("--preset", "paper", "--checkpoint", "c.pt"), "--preset is of the variational method"),
        (("--levels", "2", "--checkpoint", "c.pt"), "--levels is of the variational method"),
        (
            ("--composed-steps", "5,5", "--levels", "1"),
            "composed_steps must be one number, or from 1 to 1",
        ),
        (
            ("--composed-steps", "0", "--checkpoint", "c.pt"),
            "--composed-steps is of the variational method",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_is_read_or_made(
    command, words, message, folder, capsys
):
    assert main([*command, *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffreg: error: ") and message in said and said.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("weights", "1,1,1,1"), ("composed-steps", "5")])
def test_displacements_leave_nothing_to_minimise(option, value, folder, capsys):
    words = ("evaluate", "pairs.csv", "-o", "e", "--displacements", "d", f"--{option}", value)
    assert main(words) == 2
    assert f"leaves nothing to register: leave out --{option}" in capsys.readouterr().err


WORDS = ("--preset", "paper", "--similarity", "ncc=1,lncc=.2", "--weights", "50,1,20,2")


def test_the_command_line_says_it_all(folder, capsys):
    assert main([*PAIR, *WORDS, "--iterations", "4,3", "--composed-steps", "2,1"]) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert said == "no --checkpoint: the variational method with the preset paper, ncc + 0.2 lncc"
    found = json.loads((folder / "out/metrics.json").read_text())["objective"]
    assert found["similarity"] == {"ncc": 1, "lncc": 0.2} and found["preset"] == "paper"
    assert list(found["weights"].values()) == [50, 1, 20, 2]
    assert (found["levels"], found["iterations"], found["composed_steps"]) == (2, [4, 3], [2, 1])
    page = (folder / "out/report.html").read_text()
    said = "2 levels, at most 4, 3 iterations, from coarse to fine, after 2, 1 composed steps"
    assert said in page
    assert "similarity ncc + 0.2 lncc (preset paper)" in page


def test_a_manifest_takes_them_and_asks_again_where_they_change(folder, capsys):
    words = [*MANIFEST, *WORDS, "--levels", "1", "--iterations"]
    assert main([*words, "4"]) == 0
    (file,) = folder.glob("out/*/metrics.json")
    found = json.loads(file.read_text())["objective"]
    assert (found["levels"], found["iterations"]) == (1, 4)
    assert list(found["weights"].values()) == [50, 1, 20, 2]
    said = "variational, preset paper, ncc + 0.2 lncc, weights 50, 1, 20, 2"
    assert said in (folder / "out/report.html").read_text()
    assert main([*words, "4"]) == 0
    assert "1 of 1 pairs were complete" in capsys.readouterr().err
    assert main([*words, "5"]) == 0
    assert "complete" not in capsys.readouterr().err
    assert json.loads(file.read_text())["objective"]["iterations"] == 5
    assert main([*words, "5", "--composed-steps", "1"]) == 0
    assert json.loads(file.read_text())["objective"]["composed_steps"] == 1


@pytest.mark.parametrize(
    "factors", [{"ncc": -1}, {"ncc": 0}, {"ncc": 1e300}, {"ncc": 1, "lncc": -0.1}]
)
def test_factors_that_drive_images_apart_or_count_nothing_are_refused(factors):
    with pytest.raises(ValueError, match="similarity must have factors from 0 to 1e"):
        check_mapping(factors)
