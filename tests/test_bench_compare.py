"""The benchmark of volumes, on volumes made here, without other people's packages but SimpleITK."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench" / "compare"))
compare = pytest.importorskip("compare")
compare_page = pytest.importorskip("compare_page")
environment = pytest.importorskip("environment")
journal = pytest.importorskip("journal")
labelled = pytest.importorskip("labelled")
registering = pytest.importorskip("registering")
sets = pytest.importorskip("sets")
summary = pytest.importorskip("summary")
tools = pytest.importorskip("tools")

SIZE, SPACING = (20, 22, 24), (2.0, 2.0, 3.0)


def ball(middle, radius=5.0):
    away = np.indices(SIZE) - np.array(middle).reshape(3, 1, 1, 1)
    return np.sqrt((away**2).sum(0)) < radius


def save(path, array):
    nib.save(nib.Nifti1Image(array.astype(np.uint8), np.diag([*SPACING, 1.0])), path)


@pytest.fixture
def data(tmp_path):
    """Three people: a bright ball (label 1) in a head of label 2, moved by a voxel or two."""
    rows = ["group,moving,fixed,moving_label,fixed_label"]
    draw = np.random.default_rng(0)
    noise = 20 * draw.random(SIZE)
    for person, shift in enumerate((0, 1, 2)):
        inner, outer = ball((9 + shift, 11, 12), 4), ball((10, 11, 12), 9)
        save(tmp_path / f"{person}_t1.nii.gz", 100 * outer + 100 * inner + noise)
        save(tmp_path / f"{person}_seg.nii.gz", 2 * outer - inner)
    for moving, fixed in ((1, 0), (2, 0)):
        files = [f"{person}_{kind}.nii.gz" for kind in ("t1", "seg") for person in (moving, fixed)]
        rows.append(",".join(["brain2mm", *files]))
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def runner(data, monkeypatch):
    """By this Python, which has SimpleITK among the tools."""
    monkeypatch.setattr(environment, "python_of", lambda folder: sys.executable)
    return compare.Runner(data / "runs.jsonl", data / "peers", {})


def test_a_pair_is_of_the_person_whose_image_is_fixed(data):
    first, second = labelled.read_pairs(data, "brain2mm")
    assert (first.name, first.person) == ("1_t1-0_t1", "0")
    assert second.name == "2_t1-0_t1"
    assert labelled.read_pairs(data, "cardiac3d") == []


def test_a_shift_by_what_was_moved_makes_the_ball_fit(data):
    pair = labelled.read_pairs(data, "brain2mm")[1]
    u = np.zeros((3, *SIZE), np.float32)
    before = labelled.measured(pair, u)
    u[0] = 2  # warped(p) = moving(p + u)
    after = labelled.measured(pair, u)
    assert before["dice_labels"]["1"] < 0.9
    assert after["dice_labels"]["1"] == 1
    assert after["dice"] == pytest.approx(sum(after["dice_labels"].values()) / 2, abs=1e-4)
    # The ball is off by two voxels of 2 mm, the rim around it by one along two axes.
    assert before["hd95"] == pytest.approx((4 + 8**0.5) / 2)
    assert before["sd_log_j"] == after["sd_log_j"] == 0


def test_a_label_that_is_lost_overlaps_by_nothing(data):
    pair = labelled.read_pairs(data, "brain2mm")[0]
    u = np.zeros((3, *SIZE), np.float32)
    u[0] = 100  # the border is repeated: background everywhere
    assert labelled.measured(pair, u)["dice"] == 0


def test_folds_are_counted_by_central_differences_and_by_corners(data):
    pair = labelled.read_pairs(data, "brain2mm")[0]
    u = np.zeros((3, *SIZE), np.float32)
    u[1, :, 10] = 2.5  # one plane jumps over the next ones
    found = labelled.measured(pair, u)
    # Centrally row 11 alone, (0 - 2.5) / 2, less the border; the cells between 10 and 11.
    assert found["folded_central"] == (SIZE[0] - 4) * (SIZE[2] - 4)
    assert found["folded_corners"] == (SIZE[0] - 1) * (SIZE[2] - 1)
    assert found["smallest_corner"] == pytest.approx(-1.5)


def test_determinants_of_an_even_stretch():
    u = 0.5 * np.indices((9, 8, 7)).astype(np.float32) * np.array([1, 0, -1]).reshape(3, 1, 1, 1)
    determinants = labelled.central_determinants(u)
    assert determinants.shape == (5, 4, 3)
    assert determinants == pytest.approx(1.5 * 0.5)


def test_landmarks_are_apart_by_what_the_displacement_leaves(data):
    """Label 1 is the gland, label 2 a landmark, here of three voxels."""
    for person, row in ((0, 11), (1, 12)):
        labels = 1 * ball((10, 11, 12), 6)
        labels[9:12, row, 12] = 2
        save(data / f"{person}_seg.nii.gz", labels)
    pair = replace(labelled.read_pairs(data, "brain2mm")[0], group="prostate_mrus")
    u = np.zeros((3, *SIZE), np.float32)
    found = labelled.fit(pair, u)
    assert found["tre"] == pytest.approx(2.0)  # a voxel of 2 mm
    assert list(found["dice_labels"]) == ["1"]
    u[1] = 1
    assert labelled.fit(pair, u)["tre"] == pytest.approx(0)


def test_a_run_goes_on_where_it_was_stopped(data, runner):
    pairs = labelled.read_pairs(data, "brain2mm")
    assert runner.run(pairs[0], "identity")
    with runner.runs.open("a") as file:
        file.write('{"group": "brain2mm", "cut o')  # by a kill
    assert not runner.run(pairs[0], "identity")
    assert runner.run(pairs[1], "identity")  # on a line of its own
    assert not runner.run(pairs[1], "identity")
    assert len(runner.runs.read_text().splitlines()) == 3
    first, second = compare.read_runs(runner.runs).values()
    assert (first["pair"], second["pair"]) == ("1_t1-0_t1", "2_t1-0_t1")
    assert first["verdict"] == "homeomorphism"


def test_what_another_version_of_diffreg_did_is_done_anew(data, runner, monkeypatch):
    monkeypatch.setattr(compare, "registered", lambda *_: (np.zeros((3, *SIZE), np.float32), {}))
    pair = labelled.read_pairs(data, "brain2mm")[0]
    assert runner.run(pair, "diffreg") and not runner.run(pair, "diffreg")
    monkeypatch.setattr(compare, "version", lambda package: "9.9.9")
    assert runner.run(pair, "diffreg") and not runner.run(pair, "diffreg")
    (run,) = compare.read_runs(runner.runs).values()
    assert run["version"] == "diffreg 9.9.9"


def test_the_plan_is_run_once_and_writes_the_page(data, runner, monkeypatch):
    plan = sets.each("brain2mm", "identity", pairs=1) + sets.each("cardiac3d", "identity")
    monkeypatch.setattr(compare, "PLAN", plan)
    pages = []
    monkeypatch.setattr(compare, "write_page", lambda runs, left_out: pages.append(list(runs)))
    pairs = {group: labelled.read_pairs(data, group) for group in sets.GROUPS}
    for _ in range(2):
        compare.run_plan(pairs, runner)
    (runs,) = pages
    assert [run["pair"] for run in runs] == ["1_t1-0_t1"]
    others = runner._replace(runs=data / "others.jsonl")
    compare.run_plan(pairs, others, ["diffreg"])
    compare.run_plan(pairs, others, groups=["brain1mm"])
    assert len(pages) == 1


def test_no_page_is_written_of_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--runs", str(tmp_path / "runs.jsonl")])
    monkeypatch.setattr(compare, "write_page", None)  # is not called
    with pytest.raises(SystemExit, match=r"nothing has been run so far: .*runs\.jsonl has no line"):
        compare.main()


def test_a_tool_that_is_not_installed_is_left_out_in_words(data, runner, monkeypatch, capsys):
    monkeypatch.setattr(compare, "PLAN", sets.each("brain2mm", "greedy"))
    monkeypatch.setattr(compare, "write_page", None)  # is not called
    pairs = {"brain2mm": labelled.read_pairs(data, "brain2mm")}
    compare.run_plan(pairs, runner._replace(left_out={"picsl_greedy": "no such thing"}))
    assert not runner.runs.exists()
    assert compare_page.absent({"picsl_greedy": "no such thing"}) == [
        "- not installed here, and left out: picsl_greedy (no such thing)"
    ]


def test_what_cannot_be_installed_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "NEEDED", {"a-tool": (("./nowhere-at-all",),)})
    monkeypatch.setattr(environment, "python_of", lambda folder: Path(sys.executable))
    missing = environment.prepare(tmp_path)
    assert list(missing) == ["a-tool"]
    assert "nowhere-at-all" in missing["a-tool"]
    assert "a-tool could not be installed and is left out: " in capsys.readouterr().out


def test_every_tool_of_the_plan_is_known_and_can_be_installed():
    for task in sets.PLAN:
        assert task.method in registering.SETTINGS
        assert task.group in sets.GROUPS
    assert {method.package for method in tools.METHODS.values()} <= set(environment.NEEDED)
    pinned = environment.CONSTRAINTS.read_text()
    assert all(f"\n{package}==" in pinned for package in environment.NEEDED)


def test_where_there_is_no_data_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--data", str(tmp_path)])
    compare.main()
    assert f"there is no {tmp_path / 'volumes' / 'pairs.csv'}" in capsys.readouterr().out


def test_a_network_that_cannot_be_loaded_is_said_before_anything_is_run(data, monkeypatch):
    path = data / "best.pt"
    torch.save({"weights": {}}, path)
    (data / "volumes").mkdir(exist_ok=True)
    (data / "volumes" / "pairs.csv").touch()
    network = registering.Network(path, frozenset(), 2, "somebody's")
    monkeypatch.setattr(compare, "read_network", lambda path: network)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--data", str(data), "--voxelmorph", str(path)])
    monkeypatch.setattr(compare.environment, "prepare", lambda peers: pytest.fail("too late"))
    with pytest.raises(SystemExit, match=f"^compare: {path}"):
        compare.main()


def test_a_network_is_used_on_people_whom_it_has_not_seen(data, runner, monkeypatch):
    contents = {"config": {"model": {"name": "lunet"}}, "step": 7}
    contents |= {"pairs": ["every ordered pair of 2 images:", "heads/2_t1.nii.gz", "5_t1.nii.gz"]}
    contents |= {"validation": ["3_t1.nii.gz to 4_t1.nii.gz"]}
    monkeypatch.setattr(registering, "read_checkpoint", lambda path: contents)
    network = registering.read_network(Path("best.pt"))
    assert (network.people, network.about) == (2, "lunet, 7 steps on 2 people")
    (task,) = sets.each("brain2mm", "diffreg network")
    pairs = labelled.read_pairs(data, "brain2mm")
    assert runner.pairs(task, pairs) == []
    runner = runner._replace(networks={"diffreg network": network})
    assert runner.pairs(task, pairs) == pairs[:1]
    (other,) = sets.each("brain2mm", "VoxelMorph")
    assert runner.pairs(other, pairs) == []


def test_demons_in_a_process_of_its_own_bring_the_ball_back(data, runner):
    pytest.importorskip("SimpleITK")
    pair = labelled.read_pairs(data, "brain2mm")[1]
    for method in ("identity", "demons"):
        runner.run(pair, method)
    identity, demons = compare.read_runs(data / "runs.jsonl").values()
    assert demons["dice_labels"]["1"] > identity["dice_labels"]["1"] + 0.1
    assert 0 < demons["search_s"] < demons["cpu_s"]
    assert 20 < demons["peak_mb"] < 1000
    assert demons["version"].startswith("SimpleITK 2")


def test_from_what_a_tool_found_diffreg_goes_on_and_both_cost(data, tmp_path, monkeypatch):
    pair = labelled.read_pairs(data, "brain2mm")[1]
    shift = np.zeros((3, *SIZE), np.float32)
    shift[0] = 2
    told = {"cpu_s": 100.0, "search_s": 90.0, "peak_mb": 9e4, "version": "greedy 1"}
    monkeypatch.setattr(registering, "registered", lambda *_: (shift, told))
    found, cost = registering.begun(pair, "greedy", "", tmp_path)
    assert labelled.measured(pair, found)["dice_labels"]["1"] > 0.9
    assert 100 < cost["cpu_s"] < 130 and cost["peak_mb"] == 9e4
    assert cost["version"].startswith("diffreg ") and cost["version"].endswith(": greedy 1")


def test_what_a_process_holds_and_takes_is_its_own(tmp_path):
    words = "x = bytearray(200_000_000); sum(range(5_000_000)); open('left behind', 'w')"
    cost = registering.fresh([sys.executable, "-c", words], tmp_path / "cost")
    assert (tmp_path / "left behind").exists()
    assert 190 < cost["peak_mb"] < 300
    assert 0.02 < cost["cpu_s"] < 20
    with pytest.raises(RuntimeError, match="ValueError: no"):
        registering.fresh([sys.executable, "-c", "raise ValueError('no')"], tmp_path / "cost")


def test_what_stops_with_an_error_is_recorded_and_not_tried_again(data, runner, monkeypatch):
    monkeypatch.setattr(registering, "TOOLS", data / "none.py")
    pair = labelled.read_pairs(data, "brain2mm")[0]
    for _ in range(2):
        runner.run(pair, "greedy")
    (line,) = (data / "runs.jsonl").read_text().splitlines()
    assert "none.py" in json.loads(line)["error"]


def runs_of(method, dice, **more):
    """Of one label each: {person: Dice}."""
    about = {"group": "brain2mm", "method": method, "setting": registering.SETTINGS[method]}
    about |= {"processor": "one", "commit": "abc", "version": f"{method} 1"}
    about |= {"sd_log_j": 0.3, "sd_log_j_learn2reg": 0.06, "cpu_s": 4.0, "search_s": 3.0}
    about |= {"folded_central_percent": 0.0, "folded_certificate_percent": 0.5, "hd95": 5.0}
    about |= {"folded_central": 0, "folded_corners": 7, "smallest_corner": 0.1, "peak_mb": 100.0}
    return [
        {**about, "person": person, "dice": value, "pair": f"x-{person}",
         "dice_labels": {"4": value, "100": value, "38": value}, **more}
        for person, value in dice.items()
    ]  # fmt: skip


def written(runs, folder, left_out=None):
    compare_page.write_page(runs, left_out or {}, folder, folder)
    return (folder / "compare.md").read_text()


PEOPLE = dict(zip("abcdef", (0.60, 0.62, 0.58, 0.61, 0.59, 0.60), strict=True))


def test_a_difference_is_over_the_people_of_both_and_a_tie_is_called_one(tmp_path):
    better = {person: value + 0.02 for person, value in PEOPLE.items()}
    mixed = {person: value + (-1) ** k / 50 for k, (person, value) in enumerate(PEOPLE.items())}
    few = {person: PEOPLE[person] for person in "ab"}
    runs = [*runs_of("diffreg", PEOPLE), *runs_of("greedy", better), *runs_of("demons", mixed)]
    runs += runs_of("dipy SyN", few) + runs_of("identity", dict.fromkeys("abcdef", 0.4))
    runs = runs_of("greedy", dict.fromkeys("abcdef", 1.0), setting="another") + runs
    page = written(runs, tmp_path)
    assert "| greedy | 6 | 0.6200 [0.6" in page
    assert "| 0.600 | -0.0200 [-0.0200, -0.0200] | 5.00 | 0.300 | 0.5 (6) | 4.0 (3.0) |" in page
    assert "| +0.0000 (people: 2) |" in page
    alike = next(line for line in page.splitlines() if line.startswith("| demons | 6 |"))
    assert "(tie)" in alike
    assert (
        "- **Dice** of diffreg: better than no registration at all; a tie with demons; worse"
        in page
    )
    rows = json.loads((tmp_path / "compare.json").read_text())["groups"]["brain2mm"]
    greedy = next(row for row in rows if row["method"] == "greedy")
    assert greedy["mean"]["dice"] == pytest.approx(0.62)
    assert greedy["mean"]["cortex"] == pytest.approx(0.62)
    assert greedy["counts"]["folded_corners"] == 6 * 7
    assert (tmp_path / "compare.png").stat().st_size > 1000


def test_the_headline_has_the_worst_person_and_no_tool_of_a_few_easy_ones(tmp_path):
    easy = {"a": 0.99}
    runs = runs_of("diffreg", PEOPLE) + runs_of("demons", PEOPLE) + runs_of("greedy", easy)
    page = written(runs, tmp_path)
    assert "| Heads, 2 mm | 6 | 0.6000 [" in page
    assert (
        "| demons | 0.6000 [" in page
    )  # and not greedy, which was run on the easiest person alone
    assert "| 0.580 | 0.5 (6) | 4.0 (3.0) | demons |" in page


def test_times_of_two_processors_do_not_meet(tmp_path):
    runs = runs_of("diffreg", PEOPLE, processor="another") + runs_of("demons", PEOPLE)
    assert "| diffreg |" not in written(runs, tmp_path).partition("## Slices")[0]


def test_rows_that_are_not_run_again_stay(tmp_path):
    """A page goes on from the results, whoever has the lines of single pairs."""
    worse = {person: value**2 for person, value in PEOPLE.items()}
    lost = runs_of("dipy SyN", PEOPLE, hd95=float("nan"))
    first = written(runs_of("diffreg", PEOPLE) + runs_of("greedy", worse) + lost, tmp_path)
    assert written(runs_of("diffreg", PEOPLE, commit="def"), tmp_path) == first.replace(
        "abc", "def"
    )
    few = {person: PEOPLE[person] for person in "ab"}
    assert "| greedy | 6 | 0.3602 [" in written(runs_of("greedy", few), tmp_path)
    better = {person: value**0.5 for person, value in PEOPLE.items()}
    page = written(runs_of("greedy", better), tmp_path)
    assert "| greedy | 6 | 0.7746 [" in page and "| diffreg | 6 | 0.6000 [" in page
    assert "| -0.1746 [" in page
    page = written(runs_of("demons", PEOPLE, processor="another"), tmp_path)
    assert "| demons |" in page and "| greedy |" not in page.partition("## Slices")[0]


def test_landmarks_have_a_column_where_there_are_any(tmp_path):
    of_prostates = {"group": "prostate_mrus"}
    runs = runs_of("diffreg", PEOPLE, tre=3.0, **of_prostates)
    runs += runs_of("greedy NMI", PEOPLE, tre=4.0, **of_prostates)
    del runs[-1]["tre"]  # a person without landmarks
    page = written(runs, tmp_path)
    assert "| 4.00 [4.00, 4.00] | -1.00 [-1.00, -1.00] |" in page
    assert "- **TRE** of diffreg: better than greedy NMI." in page
    assert (tmp_path / "compare_across.png").stat().st_size > 1000


def test_an_error_and_what_is_not_installed_are_named_on_the_page(tmp_path):
    runs = runs_of("greedy", {"a": 0.5, "b": 0.5})
    errors = [f"filter (0x7f) has size [1, {size}], too thin" for size in (10, 12)]
    failed = [{**run, "error": error} for run, error in zip(runs, errors, strict=True)]
    page = written(failed, tmp_path, {"dipy": "no network"})
    assert "- greedy stopped on 2 of 2 pairs: `filter has size [...], too thin`" in page
    assert "- not installed here, and left out: dipy (no network)" in page
    assert "- not run so far, Heads, 2 mm: identity, diffreg, demons, SyNOnly, dipy SyN," in page


def test_what_was_run_on_some_pairs_is_still_to_come(tmp_path):
    """But for a network, which has seen the others, and where the plan itself has fewer."""
    few = {person: PEOPLE[person] for person in "ab"}
    runs = runs_of("diffreg", PEOPLE) + runs_of("greedy", few) + runs_of("VoxelMorph", few)
    failed = runs_of("demons", dict.fromkeys("cdef", 0.5))
    runs += [{**run, "error": "too thin"} for run in failed] + runs_of("demons", few)
    runs += runs_of("diffreg", PEOPLE, group="brain1mm") + runs_of("elastix", few, group="brain1mm")
    lines = written(runs, tmp_path).splitlines()
    heads, fine = (
        next(line for line in lines if line.startswith(f"- not run so far, Heads, {size}: "))
        for size in ("2 mm", "1 mm")
    )
    assert ", greedy (run on 2 of 6 pairs), SyNOnly," in heads
    assert "VoxelMorph" not in heads and "demons," not in heads
    assert "elastix" not in fine and "dipy SyN" in fine


def test_the_interval_of_few_people_is_none():
    assert summary.interval([0.5] * 4) is None
    low, high = summary.interval([0.5, 0.6, 0.7, 0.8, 0.9])
    assert 0.5 < low < 0.7 < high < 0.9
