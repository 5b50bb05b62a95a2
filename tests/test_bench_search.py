"""The search over settings, and what is measured of stability, on pairs made here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_variational import texture

from diffreg.fields import identity_grid
from diffreg.losses import WEIGHTS, Objective
from diffreg.ops import warp
from diffreg.registration import descent, register_variational

sys.path.insert(0, str(Path(__file__).parent.parent / "bench" / "compare"))
search = pytest.importorskip("search")
family = pytest.importorskip("family")
histories = pytest.importorskip("histories")
search_cases = pytest.importorskip("search_cases")
search_table = pytest.importorskip("search_table")
stability = pytest.importorskip("stability")

USUAL, SOFT, STIFF = family.USUAL, "bending / 2", "bending x 2"


def case(name="p/1", **more):
    """A texture, and the same bent by a voxel or two; a square of it is labelled."""
    fixed = texture((48, 40))
    bend = 1.5 * torch.sin(identity_grid((48, 40), dtype=torch.float32) / 6)
    moving = warp(fixed, bend)
    label = torch.zeros(1, 1, 48, 40, dtype=torch.uint8)
    label[..., 12:36, 10:30] = 1
    goal = Objective(weights="slice", spacing=(1.0, 1.0))
    labels = (warp(label.float(), bend) > 0.5).byte(), label
    return search_cases.Case(name, moving, fixed, None, goal, labels, (1,), **more)


def run(name, pair, dice, cpu_s=1.0, **more):
    about = {"group": "hearts, slices", "name": name, "setting": {}, "pair": pair, "dice": dice}
    about |= {"cpu_s": cpu_s, "objective": 2.0, "folded_cells": 0, "smallest_determinant": 0.3}
    return about | more


def test_levels_one_by_one_are_the_search_where_their_power_is_its_own():
    given = case()
    usual = family.registered(given, family.Setting())
    assert torch.equal(family.registered(given, family.Setting(power=4)), usual)
    assert not torch.equal(family.registered(given, family.Setting(power=2)), usual)


def test_a_setting_changes_one_thing():
    usual = Objective(weights="slice", spacing=(1.0, 2.0))
    assert family.WITHIN[USUAL].objective(usual).weights == usual.weights
    softer = family.WITHIN["bending / 2"].objective(usual)
    assert (softer.weights.bending, softer.window, softer.threshold) == (50, 9, 0.1)
    assert softer.spacing == (1.0, 2.0)
    for how, window in (("smaller", 5), ("larger", 13)):
        assert family.WITHIN[f"window {how}"].objective(usual).window == window
    assert family.WITHIN["lncc x 2"].objective(usual).similarity == {"ncc": 1.0, "lncc": 1.0}
    usual = Objective(weights="multimodal_slice")
    before = family.ACROSS["preset multimodal, mi"].objective(usual)
    assert before.similarity == {"mi": 1.0} and before.weights == WEIGHTS["multimodal"]
    assert family.ACROSS["without mi"].objective(usual).similarity == {"pls": 1.0, "lncc": 1.0}


def test_of_two_starts_the_lower_objective_stays():
    given = case()
    one, two = (
        family.reached(given, family.registered(given, family.Setting(second=second)))
        for second in (None, 0.25)
    )
    assert two <= one


def test_what_undoes_the_disturbance_has_no_error():
    shift = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 48, 40)
    disturbed = case(disturbance=shift)
    assert disturbed.accuracy(-shift)["error"] == 0
    assert disturbed.accuracy(torch.zeros_like(shift))["error"] == pytest.approx(5**0.5)


def test_the_setting_of_a_person_is_chosen_on_the_others():
    # SOFT is the best of all by its luck on p, and so must not be used on p.
    dice = {USUAL: (0.8, 0.8, 0.8), SOFT: (1.0, 0.75, 0.75)}
    runs = [
        run(name, f"{person}/1", value)
        for name, values in dice.items()
        for person, value in zip("pqr", values, strict=True)
    ]
    found = search_table.choice(search_table.complete(runs)["hearts, slices"])
    assert dict(found["chosen"]) == {USUAL: 1, SOFT: 2}
    assert found["mean"]["score"] == pytest.approx((0.8 + 0.75 + 0.75) / 3)
    assert found["minus_shipped"] == {"mean": pytest.approx(-0.1 / 3), "interval": None}


def test_where_the_error_is_known_the_smallest_is_chosen():
    runs = [
        run(name, f"{p}/1", dice, error=error)
        for name, dice, error in ((USUAL, 0.9, 2.0), (SOFT, 0.8, 1.0))
        for p in "pq"
    ]
    found = search_table.choice(search_table.complete(runs)["hearts, slices"])
    assert dict(found["chosen"]) == {SOFT: 2}
    assert found["mean"]["score"] == -1


def test_what_takes_longer_is_left_out_where_time_counts():
    seconds = {USUAL: 1, SOFT: 1.2, STIFF: 1.3}
    settings = search_table.complete(run(name, "p/1", 0.8, s) for name, s in seconds.items())
    assert set(search_table.no_slower(settings["hearts, slices"])) == {USUAL, SOFT}


def test_pairs_that_not_every_setting_has_are_left_out():
    runs = [run(USUAL, "p/1", 0.8), run(USUAL, "q/1", 0.9), run(SOFT, "p/1", 0.7)]
    found = search_table.complete(runs)["hearts, slices"]
    assert {name: list(pairs) for name, pairs in found.items()} == {USUAL: ["p/1"], SOFT: ["p/1"]}


def test_a_search_goes_on_where_it_was_stopped_and_is_told(tmp_path, monkeypatch):
    cases = [case(f"{person}/1") for person in "abcde"]
    asked, lines = [USUAL, "iterations 30, 30, 10"], tmp_path / "runs.jsonl"
    for count in (2, 5, 5):
        monkeypatch.setattr(search, "READERS", {"hearts, slices": lambda _, n=count: cases[:n]})
        search.run_all(tmp_path, ["hearts, slices"], asked, lines)
        assert len(lines.read_text().splitlines()) == 2 * count
    search_table.write_results(search.journal.read_some(lines, search.key).values(), tmp_path)
    page = (tmp_path / "variational_search.md").read_text()
    assert "| hearts, slices: 5 (5) |" in page
    row = next(line for line in page.splitlines() if line.startswith("| iterations 30"))
    assert "[" in row  # an interval over the five
    search_table.write_results([run(USUAL, "p/1", 0.8) | {"group": "heads, 2 mm"}], tmp_path)
    both = (tmp_path / "variational_search.md").read_text()
    assert row in both and "## heads, 2 mm: 1 pairs" in both


def test_noise_is_of_the_size_and_the_place_that_it_is_said_to_be():
    image, draw = np.zeros((1, 1, 60, 60)), np.random.default_rng(0)
    image[..., :30] = 0.5
    for kind in ("white", "smoothed"):
        assert stability.noise_of(kind, image, draw).std() == pytest.approx(0.03, rel=0.05)
    inside = stability.noise_of("inside", image, draw)
    assert not inside[..., 30:].any() and inside[..., :30].std() == pytest.approx(0.03, rel=0.05)
    noise = [stability.noise_of(kind, image, draw) for kind in ("white", "smoothed")]
    along = [np.corrcoef(n[..., 1:].ravel(), n[..., :-1].ravel())[0, 1] for n in noise]
    assert abs(along[0]) < 0.05 < 0.2 < along[1]


def test_an_image_with_white_noise_stays_on_itself_and_rounding_moves_it_a_little():
    given = case()
    assert stability.itself("white")(given)["largest"] == 0
    assert 0 < stability.rounding(given)["largest"] < 1
    assert stability.going_on(given)["gain_percent"] >= 0


def test_figures_of_stability_are_means_with_the_worst(tmp_path):
    name, group = next(iter(stability.TRIALS)), "heads, 2 mm"
    found = [
        {"trial": name, "group": group, "pair": pair, "p95": value, "largest": 10 * value}
        for pair, value in (("a", 0.01), ("b", 0.03))
    ]
    stability.write_results(found, tmp_path)
    page = (tmp_path / "variational_stability.md").read_text()
    assert f"| {name} | {group} | 2 | 0.020 (0.010 to 0.030) | 0.200 (0.100 to 0.300) |" in page


def test_a_rounded_history_keeps_what_bfloat16_holds():
    draw = torch.Generator().manual_seed(0)
    points = [torch.randn(1, 2, 6, 5, generator=draw) for _ in range(4)]
    history = histories.Rounded(points[0])
    change, bend = history.add((points[0], points[1]), (points[2], points[3]))
    assert torch.equal(change, (points[2] - points[0]).bfloat16().float().flatten())
    assert torch.equal(history.curvatures[0], torch.dot(change, bend))


def test_the_first_matrix_of_a_level_stays_for_the_level(monkeypatch):
    values = iter((1.0, 2.0))
    monkeypatch.setattr(descent, "_data_curvature", lambda *_: next(values))
    kept, (coarse, fine) = histories.first_matrix(), (object(), object())
    assert [kept(None, None, level, None) for level in (coarse, coarse, fine, fine)] == [1, 1, 2, 2]


def test_what_is_replaced_in_the_optimiser_is_put_back():
    given, before = case(), vars(descent).copy()
    images = given.moving, given.fixed, given.objective
    usual = register_variational(*images)
    found = {
        name: {given.name: histories.measured(given, replaced())}
        for name, replaced in histories.VARIANTS.items()
    }
    assert vars(descent) == before
    rows = {row["variant"]: row for row in histories.rows_of(found)}
    assert rows[histories.USUAL]["objective_percent"] == {"mean": 0, "interval": None}
    assert rows[histories.USUAL]["mean"]["objective"] == family.reached(given, usual)
    # Of slices ten pairs are kept anyway; what is rounded ends elsewhere.
    assert rows["10 pairs"]["objective_percent"]["mean"] == 0
    assert rows["10 pairs in bfloat16"]["objective_percent"]["mean"] != 0


@pytest.mark.parametrize(
    ("script", "words"), [(search, ["run"]), (stability, ["run"]), (histories, [])]
)
def test_without_the_images_a_script_says_so(tmp_path, monkeypatch, capsys, script, words):
    monkeypatch.setattr(sys, "argv", ["script", *words, "--data", str(tmp_path)])
    script.main()
    assert capsys.readouterr().out == f"skipped: there is no volumes/pairs.csv in {tmp_path}\n"
