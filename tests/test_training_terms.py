"""Measures of the user's own and terms that need more than images, by settings."""

import sys

import numpy as np
import pytest
import torch
from runs import config_of, with_settings
from test_trainer import save_images, weights

from diffreg.data.images import read_image, write_image
from diffreg.data.transforms import write_displacement
from diffreg.losses import LNCC, NCC, Dice, EndPoint, InverseConsistency, Keypoint, Objective
from diffreg.ops import warp
from diffreg.training import Trainer, load_network
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.config import EXTRA, Config
from diffreg.training.log import ValidationLog, read_log

LOSSES = """
import torch
from diffreg.ops import local_correlation

def squares(warped, fixed, mask):
    return ((warped - fixed) ** 2).flatten(1).mean(1)

def five(warped, fixed, mask):
    return local_correlation(warped, fixed, 5, mask)

class Squares(torch.nn.Module):
    def forward(self, warped, fixed, mask=None):
        return squares(warped, fixed, mask)
"""


def squares(warped, fixed, mask):
    return ((warped - fixed) ** 2).flatten(1).mean(1)


def pair(samples=2):
    draw = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand(2, samples, 1, 14, 12, generator=draw)
    u = torch.rand(samples, 2, 14, 12, generator=draw)
    return moving, fixed, u.requires_grad_()


def test_a_measure_of_ones_own_is_one_of_ours():
    """It is the objective that has the operator's, values and gradients."""
    moving, fixed, u = pair()
    for ours, own in (
        ({"ncc": 1.0, "ssd": 0.2}, {"ncc": 1.0, squares: 0.2}),
        ("ncc", NCC("none")),
        ({"lncc": 0.5}, {LNCC(9, "none"): 0.5}),
    ):
        results = []
        for similarity in (ours, own):
            objective = Objective(similarity).with_spacing((1.0, 2.0))
            total = objective(moving, fixed, u).total
            results.append((total, *torch.autograd.grad(total, u)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        evaluate = objective.value_and_gradient_of(moving[:1], fixed[:1])
        single = Objective(ours, spacing=(1.0, 2.0))(moving[:1], fixed[:1], u[:1]).total
        assert evaluate(u[:1].detach())[0].item() == pytest.approx(single.item(), rel=1e-5)


def test_measures_have_names():
    objective = Objective({"ncc": 1.0, squares: 0.5, LNCC(5, "none"): 1, LNCC(9, "none"): 1})
    first, second, *both = objective.similarity
    assert (first, second) == ("ncc", f"{__name__}:squares")
    assert both == ["diffreg.losses.similarities:LNCC", "diffreg.losses.similarities:LNCC 2"]
    assert list(objective.with_spacing(2.0).similarity) == list(objective.similarity)


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (lambda w, f, m: squares(w, f, m).mean(), r"one value a sample, \(2,\), such as by reduct"),
        (lambda w, f, m: squares(w, f, m).sum().item(), "got float"),
        (lambda w, f, m: squares(w, f, m).detach(), "must have a gradient to the warped image"),
        (lambda w, f, m: torch.zeros(2, dtype=torch.int64), "of a floating dtype, got torch.int64"),
        (lambda w, f, m: squares(w, f, m)[:1], r"\(2,\), got \(1,\)"),
    ],
)
def test_a_measure_that_is_none_is_refused_in_words(measure, said):
    with pytest.raises((TypeError, ValueError), match=rf"the measure .*:.*lambda.*{said}"):
        Objective({"ncc": 1.0, measure: 0.2})(*pair())


def test_what_is_no_measure():
    for wrong in (3, LNCC, {LNCC: 1.0}):
        with pytest.raises(TypeError, match=r"similarity must be a name, a callable \(warped"):
            Objective(wrong)


@pytest.fixture
def losses(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_losses"
    sys.modules.pop("own_losses", None)


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


def trainer(config):
    return Trainer(config, progress=False)


def test_a_measure_by_its_import_path(losses, images, tmp_path):
    ends = {}
    for name, other in (
        ("ours", "ssd"),
        ("path", f"{losses}:squares"),
        ("class", f"{losses}:Squares"),
    ):
        config = config_of(images, tmp_path / name, steps=2)
        run = trainer(with_settings(config, objective={"similarity": {"ncc": 1.0, other: 0.2}}))
        run.train()
        ends[name] = weights(run.out / "last.pt")
    for name in ("path", "class"):
        for key, value in ends["ours"].items():
            torch.testing.assert_close(ends[name][key], value, rtol=1e-3, atol=1e-5)
    path = tmp_path / "path" / "last.pt"
    assert list(read_checkpoint(path)["needs"]) == ["own_losses:squares"]
    with pytest.raises(ValueError, match=r"names what does not come with diffreg .*own_losses:sq"):
        load_network(path)
    found = load_network(path, trust=True)
    assert found["similarity"] == "ncc+own_losses:squares"
    with pytest.raises(ValueError, match=r"objective\.similarity = 'own_losses:cubes': own_losses"):
        config = config_of(images, tmp_path / "other", steps=2)
        trainer(with_settings(config, objective={"similarity": "own_losses:cubes"}))


def test_the_window_is_that_of_lncc(losses, images, tmp_path):
    """Of a run and of what its checkpoint refines by; without lncc it is refused."""
    ends = {}
    for name, similarity, window in (
        ("own", f"{losses}:five", None),
        ("five", "lncc", 5),
        ("preset", "lncc", None),
    ):
        config = config_of(images, tmp_path / name, steps=2)
        settings = {"similarity": similarity, **({"window": window} if window else {})}
        run = trainer(with_settings(config, objective=settings))
        run.train()
        ends[name] = torch.cat([w.flatten() for w in weights(run.out / "last.pt").values()])
    torch.testing.assert_close(ends["five"], ends["own"], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(ends["preset"], ends["own"], rtol=1e-3, atol=1e-5)
    assert load_network(tmp_path / "five" / "last.pt")["objective"].window == 5
    older = read_checkpoint(tmp_path / "preset" / "last.pt")["config"]
    assert "window" not in older["objective"]  # as before there was the setting
    resumed = with_settings(Config.from_dict(older), training={"resume": True})
    assert trainer(resumed).objective.window == 9
    with pytest.raises(ValueError, match=r"window is of lncc, similarity is ncc; leave it out"):
        config = config_of(images, tmp_path / "ncc")
        trainer(with_settings(config, objective={"similarity": "ncc", "window": 5}))
    with pytest.raises(ValueError, match=r"objective\.window = None, not 5: set that"):
        trainer(with_settings(resumed, objective={"window": 5}))


@pytest.fixture
def manifest(images):
    """Four pairs; the second and third have labels, points and a known displacement."""
    for name, at in (("a", 11), ("b", 13), ("c", 12)):
        image = read_image(images / f"{name}.nii")
        write_image(
            images / f"label_{name}.nii", (image.data > 120).to(torch.uint8), image, "uint8"
        )
        (images / f"points_{name}.csv").write_text(f"i,j\n{at},10\n{at - 3},10\n{at},14\n")
    fixed = read_image(images / "b.nii")
    truth = torch.zeros(1, 2, *fixed.shape)
    truth[:, 0] = -2  # the fixed disc is at 13, the moving one at 11
    write_displacement(images / "truth_ab.nii", truth, fixed)
    write_displacement(images / "truth_cb.nii", truth / 2, fixed)
    (images / "pairs.csv").write_text(
        "moving,fixed,moving_label,fixed_label,moving_points,fixed_points,true_displacement\n"
        "b.nii,c.nii,,,,,\n"
        "a.nii,b.nii,label_a.nii,label_b.nii,points_a.csv,points_b.csv,truth_ab.nii\n"
        "c.nii,b.nii,label_c.nii,label_b.nii,points_c.csv,points_b.csv,truth_cb.nii\n"
        "c.nii,a.nii,,,,,\n"
    )
    return images / "pairs.csv"


def config_with(manifest, out, steps=1, **objective):
    config = config_of(manifest, out, steps=steps)
    plain = {"amplitude": 0.0, "flip_axes": []}
    return with_settings(config, augmentation=plain, objective=objective)


def test_each_term_is_its_loss(manifest, tmp_path):
    """The log has the raw means, the total their weighted sum."""
    factors = dict(zip(EXTRA, (0.5, 0.25, 0.125, 2.0), strict=True))
    run = trainer(config_with(manifest, tmp_path / "run", **factors))
    with torch.no_grad():
        run.network.head.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
        batch = run.dataset.batch(range(4))
        known = batch.known
        u = run.network(batch.moving, batch.fixed)
        back = run.network(batch.fixed, batch.moving)
        one, other = (
            run.objective(*images, v, None).total.item()
            for images, v in (((batch.moving, batch.fixed), u), ((batch.fixed, batch.moving), back))
        )
        apart = InverseConsistency()
        expected = {
            "labels": Dice()(warp(known.moving_label, u), known.fixed_label),
            "landmarks": Keypoint()(u, known.fixed_points, known.moving_points),
            "displacement": EndPoint()(u, known.displacement),
            "inverse_consistency": (apart(u, back) + apart(back, u)) / 2,
        }
    entry = run.train_step()
    total = (one + other) / 2
    for name, value in expected.items():
        assert value > 0
        assert getattr(entry, name) == pytest.approx(value.item(), rel=1e-4)
        total += factors[name] * value.item()
    assert entry.total == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", EXTRA)
def test_each_term_is_minimised_and_logged_in_validation(manifest, tmp_path, name):
    config = config_with(
        manifest, tmp_path / "run", steps=40, weights=[0, 0, 0.01, 0.01], **{name: 1.0}
    )
    config = with_settings(config, data={"validation": [str(manifest)]})
    config = with_settings(
        config,
        optimizer={"learning_rate": 1e-2},
        training={"validate_every": 20},
        model={"widths": [8, 16]},
    )
    run = trainer(config)
    if name == "inverse_consistency":
        with torch.no_grad():  # near the identity it is 0
            run.network.head.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
    run.train()
    log = [getattr(entry, name) for entry in read_log(run.out / "log.csv")]
    assert np.mean(log[-5:]) < 0.6 * np.mean(log[:3])
    for kind, file in ((ValidationLog, "validation.csv"),):
        last = read_log(run.out / file, kind)[-1]
        assert getattr(last, name) > 0
        assert all(getattr(last, other) == 0 for other in EXTRA if other != name)


def test_terms_that_cannot_be(images, tmp_path):
    for name in EXTRA[:3]:
        with pytest.raises(ValueError, match=rf"objective\.{name} needs pairs that have"):
            trainer(with_settings(config_of(images, tmp_path / "run"), objective={name: 1.0}))
    with pytest.raises(ValueError, match=r"\[objective\] labels must be a number >= 0, got -1"):
        Config.from_dict({"objective": {"labels": -1}})
