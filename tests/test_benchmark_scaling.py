"""`diffreg bench`: how times grow with size and threads, what networks hold, later runs."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from diffreg.benchmark import kept, network, network_rows, run, tables
from diffreg.benchmark.counting import peak_bytes
from diffreg.benchmark.prediction import prediction, prediction_memory

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads(Path(run.__file__).with_name("schema.json").read_text())
RUN = {"commit": "abc", "date": "2026-01-02"}


def check(part, rows):
    jsonschema.validate(rows, SCHEMA["properties"][part] | {"$defs": SCHEMA["$defs"]})


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_memory_is_that_of_the_tensors_held():
    def two_at_once():
        first = torch.ones(1000)
        del first
        second = torch.ones(1000)
        return second + torch.ones(1000)

    assert peak_bytes(two_at_once) == pytest.approx(3 * 4000, abs=512)


def test_a_step_on_a_volume_says_what_it_holds():
    row = network.training_step("lunet", 16, 1, "cpu", False, 0, 3, half_resolution=True)
    check("training", [row])
    held = row["peak_mebibytes"]
    assert held == network.step_memory(row)  # the same whenever it is measured
    whole = network.step_memory(row | {"half_resolution": False})
    assert all(whole[name] > 1.1 * value for name, value in held.items())
    assert "lunet, 1 x 1 x 16 x 16 x 16, half resolution | 1 |" in tables.training(
        {"training": [row | {"threads": 1}]}
    )


def test_a_prediction_of_a_volume_says_what_it_holds():
    row = prediction("lunet", 16, 1, "cpu", 0, 3, half_resolution=True)
    check("prediction", [row])
    assert row["peak_mebibytes"] == prediction_memory(row)
    assert row["peak_mebibytes"]["contiguous"] > 0.1
    page = tables.prediction({"prediction": [row]})
    assert "not measured" not in page
    del row["peak_mebibytes"]
    assert "Memory was not measured in this run." in tables.prediction({"prediction": [row]})


def test_volumes_are_measured_on_all_threads_and_on_one(two_threads, monkeypatch):
    def step(model, size, batch, device, compiled, seconds, dimensions=2, half=False):
        return dimensions, size, torch.get_num_threads()

    def predicted(model, size, batch, device, seconds, dimensions=2, half=False):
        return dimensions, size, torch.get_num_threads()

    monkeypatch.setattr(network_rows, "training_step", step)
    monkeypatch.setattr(network_rows, "prediction", predicted)
    monkeypatch.setattr(network_rows, "file_to_file", lambda *_: None)
    steps = list(network_rows.training_rows(False, "cpu", str))
    assert steps[-2:] == [(3, 64, 2), (3, 64, 1)]
    assert steps.count((2, 256, 1)) == 2  # of each network
    predictions = list(network_rows.prediction_rows(False, "cpu", str))
    assert predictions[-3:-1] == [(3, 96, 2), (3, 96, 1)]
    assert list(network_rows.training_rows(False, "cuda", str))[-1:] == [(3, 128, 2)]
    assert not [row for row in network_rows.training_rows(True, "cpu", str) if row[0] == 3]
    assert torch.get_num_threads() == 2


def test_threads_are_compared_by_turns(monkeypatch):
    def measured(case, draw, *_):
        return {"nanoseconds_a_voxel": {"diffreg": 8 / torch.get_num_threads(), "eager 1": 9.0}}

    monkeypatch.setattr(run, "measure", measured)
    before = torch.get_num_threads()
    rows = list(run.on_threads(5, False, str))
    assert torch.get_num_threads() == before
    check("threads", rows)
    assert [row["threads"] for row in rows] == [1, 2, 4] * 4
    page = tables.threads({"threads": rows})
    assert "| 1 x 1 x 96 x 96 x 96 | 4 | 2 | 4.00x | 9 | 1.00x |" in page
    assert "another run" not in page
    assert [row["threads"] for row in run.on_threads(5, True, str)] == [1, 2, 1, 2] * 2


def test_one_thread_is_said_to_be_compared_with_none():
    said = []
    assert list(run.on_threads(1, False, said.append)) == []
    assert said == ["threads are not compared: this run has one (OMP_NUM_THREADS sets how many)"]
    assert tables.threads({"threads": []}) == "Threads were not compared: this run had one.\n"


def test_the_best_turn_stands_beside_that_of_one_thread():
    turns = ((1, 8000.0), (2, 5000.0), (1, 9000.0), (2, 4000.0))
    rows = [{"shape": [1, 1, 8, 8], "threads": n, "diffreg": t, "eager": None} for n, t in turns]
    page = tables.threads({"threads": [row | {"another_run": RUN} for row in rows]})
    assert "| 1 x 1 x 8 x 8 | 2 | 4,000 | 2.00x | - | - |" in page
    assert "Of another run (commit abc, 2026-01-02)" in " ".join(page.split())


def test_sizes_stand_beside_the_fastest_other_but_torch_compile():
    usual = {"operator": "warp", "direction": "forward + backward", "dtype": "float32"}
    usual |= {"field": "smooth", "memory": "given back"}
    figures = {"diffreg": 2.0, "copy": 0.1, "eager 1": 9.0, "eager 2": 8.0}
    figures |= {"MONAI": 7.5, "torch.compile": 3.0}
    rows = [
        usual | {"shape": shape, "nanoseconds_a_voxel": figures}
        for shape in ([1, 1, 16, 16], [4, 1, 8, 8], [1, 3, 16, 16])
    ]
    page = tables.sizes({"operators": rows})
    assert "| operator | 4 x 8² | 1 x 16² |" in page  # the smallest first, of one channel
    assert "| warp | 2, 7.5 | 2, 7.5 |" in page
    assert "Sizes were not compared" in tables.sizes({"operators": rows[:1]})


@pytest.mark.parametrize("mark", tables.PAGE)
def test_the_page_shows_the_committed_table(mark):
    result = json.loads((ROOT / "bench" / "results" / "benchmark.json").read_text())
    shown = (ROOT / "docs" / "benchmarks.md").read_text().partition(f"<!-- {mark} -->")[2]
    assert shown.partition(f"<!-- /{mark} -->")[0].strip() == tables.PAGE[mark](result).strip()


@pytest.fixture
def later(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.delitem(sys.modules, "later", raising=False)
    import later

    return later


def test_what_is_measured_later_says_of_which_run_it_is(later):
    old = {"model": "lunet", "shape": [1, 1, 16, 16], "threads": 1, "milliseconds": {"a": 1.0}}
    old |= {"spread": {}}
    new = old | {"threads": 2, "peak_mebibytes": {"a": 3.0}}
    both = later.merged([old], [new], RUN)
    assert both == [old, new | {"another_run": RUN}]
    again = later.merged(both, [old | {"milliseconds": {"a": 2.0}}], RUN)
    assert [row["threads"] for row in again] == [2, 1]
    held = old | {"peak_mebibytes": {"a": 1.0}, "memory_of_another_run": RUN}
    check("training", [held, both[1]])
    said = " ".join(tables.training({"training": [held, both[1]]}).split())
    assert "Of another run (commit abc, 2026-01-02)" in said
    assert "lunet, 1 x 1 x 16 x 16 (threads: 2); the memory of the others." in said


def test_nothing_of_another_place_is_added(later, monkeypatch):
    monkeypatch.setattr(kept, "here", lambda: {"torch": "0.1", "processor": "another"})
    monkeypatch.setattr(sys, "argv", ["later.py", "memory"])
    with pytest.raises(SystemExit, match=r"here is .*another.*: make bench"):
        later.main()
