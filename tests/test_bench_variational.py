import sys
from pathlib import Path

import pytest
import torch
from test_variational import texture

from diffreg.fields import identity_grid
from diffreg.ops import warp

sys.path.insert(0, str(Path(__file__).parent.parent / "bench" / "compare"))
nested = pytest.importorskip("nested")
peers = pytest.importorskip("peers")


def runs(dice):
    """{setting: {pair: Dice}} as cardiac.py reads it."""
    about = {"hd95": 1.0, "assd": 0.5, "folded_percent": 0.0, "min_determinant": 0.3}
    return {
        ("labels", "method", setting, pair): {"dice": value, **about}
        for setting, pairs in dice.items()
        for pair, value in pairs.items()
    }


def test_a_setting_is_chosen_without_the_patient_that_it_is_used_on():
    # "b" is the best of all by its luck on p, and so must not be used on p.
    measured = runs(
        {
            "a": {"p/1": 0.8, "q/1": 0.8, "r/1": 0.8},
            "b": {"p/1": 1.0, "q/1": 0.75, "r/1": 0.75},
        }
    )
    result = nested.nested(measured, "labels", "method")
    assert result["chosen"] == {"p": "a", "q": "b", "r": "b"}
    assert result["patients"]["dice"] == {"p": 0.8, "q": 0.75, "r": 0.75}


def test_every_patient_counts_alike():
    measured = runs({"a": {"p/1": 1.0, "p/2": 1.0, "p/3": 1.0, "q/1": 0.5}})
    result = nested.nested(measured, "labels", "method")
    assert result["mean"]["dice"] == 0.75
    assert result["mean_of_pairs"]["dice"] == 0.875


def test_a_setting_that_was_stopped_half_way_is_left_out():
    measured = runs({"a": {"p/1": 0.8, "q/1": 0.8}, "b": {"p/1": 1.0}})
    assert list(nested.by_setting(measured, "labels", "method")) == ["a"]


def test_the_interval_is_over_every_resample():
    # Means of two draws from 0 and 1: 0, 1/2, 1/2, 1.
    assert nested.interval([0.0, 1.0]) == pytest.approx([0.0375, 0.9625])
    assert nested.interval([0.5, 0.5]) == [0.5, 0.5]


@pytest.mark.parametrize("ours, said", [(0.9, "+0.1000 [+0.1000, +0.1000]"), (0.8, "(tie)")])
def test_a_tie_is_called_a_tie(ours, said):
    a = nested.nested(runs({"a": {"p/1": ours, "q/1": ours}}), "labels", "method")
    b = nested.nested(runs({"a": {"p/1": 0.8, "q/1": 0.8}}), "labels", "method")
    assert said in nested.table([b | {"ours_minus_this": nested.versus(a, b)}])


@pytest.mark.parametrize("forces", ["diffeomorphic", "symmetric"])
def test_the_demons_field_is_in_our_convention(forces):
    moving = texture((40, 56)).float()
    y, x = identity_grid((40, 56))[0]
    bump = torch.exp(-((y - 20) ** 2 + (x - 28) ** 2) / 100)
    true = torch.stack([2 * bump, -bump])[None]
    fixed = warp(moving, true)
    u = peers.demons(moving, fixed, forces=forces, sigma=1.0, iterations=60, levels=2)
    assert u.shape == true.shape
    inside = bump > 0.3
    assert ((u - true)[0, :, inside]).norm(dim=0).mean() < 0.5
