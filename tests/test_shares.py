"""A manifest by several ranks: what one process does, whoever of them comes first or dies."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.cli.main import main
from diffreg.evaluation import cohort_report
from diffreg.registration import cohort as cohort_module
from diffreg.system.atomic import replacing
from diffreg.system.ranks import Rank, cuda_device, this_rank

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = str(Path(__file__).parents[1])
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def save(name, at, label=False):
    x, y = np.meshgrid(np.linspace(0, 1, 28), np.linspace(0, 1, 24), indexing="ij")
    image = 200 * np.exp(-(((x - at) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2))
    array = (image > 100).astype(np.uint8) if label else image.astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Five pairs of three patients, with labels; in bad.csv, line 3 cannot be registered."""
    monkeypatch.chdir(tmp_path)
    for name in (*NAMES, "DIFFREG_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    lines = []
    for k in range(5):
        for name, at in ((f"m{k}", 0.5 + 0.02 * k), (f"f{k}", 0.5)):
            save(f"{name}.nii.gz", at)
            save(f"{name}_label.nii.gz", at, label=True)
        lines.append(f"m{k}.nii.gz,f{k}.nii.gz,m{k}_label.nii.gz,f{k}_label.nii.gz,p{k // 2}\n")
    head = "moving,fixed,moving_label,fixed_label,group\n"
    (tmp_path / "pairs.csv").write_text(head + "".join(lines))
    flat = nib.Nifti1Image(np.zeros((28, 24), np.float32), np.diag([2.0, 2.0, 5.0, 1.0]))
    nib.save(flat, "flat.nii.gz")
    lines[1] = lines[1].replace("m1.nii.gz", "flat.nii.gz")
    (tmp_path / "bad.csv").write_text(head + "".join(lines))
    return tmp_path


@pytest.fixture
def as_rank(folder, monkeypatch):
    """as_rank(1, 4, "register", ...): the exit status of one task of an array, in this process."""

    def run(number, count, *words):
        with monkeypatch.context() as patch:
            patch.setenv("RANK", str(number))
            patch.setenv("WORLD_SIZE", str(count))
            return main(list(words))

    return run


def torchrun(*words, processes=2):
    """`torchrun -m diffreg WORDS` on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["--nproc-per-node", str(processes), "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "diffreg", *words]
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def pairs_in(out):
    return sorted(path.parent.name for path in Path(out).glob("*/metrics.json"))


def left(out):
    """What ranks leave for each other beside the mark of who wrote the report."""
    return sorted(path.name for path in Path(out).glob("rank-[0-9]*"))


def without_times(values):
    if isinstance(values, dict):
        return {k: without_times(v) for k, v in values.items() if k != "seconds"}
    return [without_times(v) for v in values] if isinstance(values, list) else values


def same_results(one, two):
    """Displacements to the bit, and the numbers of the table but for times."""
    assert pairs_in(one) == pairs_in(two) != []
    for name in pairs_in(one):
        fields = [nib.load(f"{out}/{name}/displacement.nii.gz").dataobj for out in (one, two)]
        assert np.asarray(fields[0]).tobytes() == np.asarray(fields[1]).tobytes()
    for name in ("metrics.csv", "evaluation.csv"):
        assert table(Path(one, name)) == table(Path(two, name))


def table(path):
    """The rows but for times; None where there is no such file."""
    if not path.exists():
        return None
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same_evaluations(one, two):
    found = [json.loads(Path(out, "evaluation.json").read_text()) for out in (one, two)]
    assert without_times(found[0]) == without_times(found[1])
    assert "seconds" in found[1]["pairs"][0] or "seconds" not in found[0]["pairs"][0]


# several processes at once, as torchrun starts them


@pytest.mark.slow
def test_torchrun_registers_what_one_process_does(folder):
    done = torchrun("register", "pairs.csv", "-o", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two/report.html: 5 pairs: NCC ") == 1
    assert done.stdout.count("the report follows when all ranks are done") == 1
    assert done.stderr.count("the variational method with what suits the contrasts") == 1
    assert (folder / "two/report.html").exists()
    assert main(["register", "pairs.csv", "-o", "one"]) == 0
    same_results("one", "two")
    assert left("two") == []


@pytest.mark.slow
def test_torchrun_evaluates_to_the_same_numbers_and_says_once_what_failed(folder, capsys):
    """A rank whose pair fails ends well, so that torchrun does not end the others."""
    done = torchrun("evaluate", "bad.csv", "-o", "two", processes=3)
    assert done.returncode != 0
    assert main(["evaluate", "bad.csv", "-o", "one"]) == 2
    alone = capsys.readouterr()
    same_results("one", "two")
    same_evaluations("one", "two")
    errors = [line for line in alone.err.splitlines() if line.startswith("diffreg: error")]
    assert len(errors) == 2 and errors[0].startswith("diffreg: error: bad.csv, line 3: ")
    assert [line for line in done.stderr.splitlines() if line in errors] == errors
    assert alone.out.replace("one/", "two/").splitlines()[-1] in done.stdout
    assert "the report follows when all ranks are done" in done.stdout


@pytest.mark.slow
@pytest.mark.alone
def test_a_rank_that_is_killed_goes_on(folder, as_rank, capsys):
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    environment |= {"RANK": "0", "WORLD_SIZE": "2"}
    words = ["register", "pairs.csv", "-o", "two"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffreg", *words], env=environment, stderr=subprocess.PIPE
    )
    while not pairs_in("two"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert pairs_in("two") != ["0001_m0_to_f0", "0003_m2_to_f2", "0005_m4_to_f4"]
    assert as_rank(1, 2, *words) == 0
    assert not (folder / "two/report.html").exists()
    capsys.readouterr()
    assert as_rank(0, 2, *words) == 0
    assert "rank 0 of 2: 1 of 3 pairs were complete and are kept" in capsys.readouterr().err
    assert main(["register", "pairs.csv", "-o", "one"]) == 0
    same_results("one", "two")


@pytest.mark.slow
def test_tasks_of_an_array_are_processes_with_a_rank_each(folder):
    command = [sys.executable, "-m", "diffreg", "evaluate", "pairs.csv", "-o", "two"]
    said = []
    for number in (1, 0):
        ranks = {"RANK": f"{number}", "WORLD_SIZE": "2", "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ranks)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    follows = "rank 1 of 2: 2 pairs done; the report follows when all ranks are done\n"
    assert said[0] == follows
    assert said[1].endswith("two/report.html: 5 pairs, variational, auto\n")


# one after the other


def test_shares_in_any_order_make_one_report(as_rank, capsys):
    words = ("evaluate", "pairs.csv", "-o")
    assert main([*words, "one"]) == 0
    capsys.readouterr()
    for number in (2, 0):
        assert as_rank(number, 3, *words, "two") == 0
        said = capsys.readouterr()
        share = {0: "2 pairs", 2: "1 pair"}[number]
        line = f"rank {number} of 3: {share} done; the report follows when all ranks are done\n"
        assert said.out == line
        assert ("the variational method" in said.err) == (number == 0)
        assert not Path("two/evaluation.json").exists()
    assert as_rank(1, 3, *words, "two") == 0
    same_results("one", "two")
    same_evaluations("one", "two")
    pages = [Path(out, "report.html").read_text() for out in ("one", "two")]
    assert pages[0].count("<img") == pages[1].count("<img") > 0


def test_of_two_ranks_that_find_all_done_one_writes_the_report(as_rank, monkeypatch, capsys):
    """Both of them before either has written anything."""
    words = ("register", "pairs.csv", "-o", "two")
    write, others = cohort_report.write_cohort_report, []

    def meanwhile(*arguments, page):
        if not others:
            others.append(as_rank(0, 2, *words))
        return write(*arguments, page=page)

    monkeypatch.setattr(cohort_module, "forget", lambda out, rank: None)  # both had begun before
    monkeypatch.setattr(cohort_report, "write_cohort_report", meanwhile)
    assert as_rank(0, 2, *words) == 0
    assert as_rank(1, 2, *words) == 0
    assert others == [0]
    said = capsys.readouterr().out
    assert said.count("two/report.html: 5 pairs") == 1
    assert said.count("rank 0 of 2: 3 pairs done; the report follows") == 2


def test_a_network_gives_the_same_bits_to_batches_of_one(as_rank):
    words = ("register", "pairs.csv", "--checkpoint", "lunet-cardiac-mr", "--batch-size", "1", "-o")
    assert main([*words, "one"]) == 0
    assert [as_rank(number, 2, *words, "two") for number in range(2)] == [0, 0]
    same_results("one", "two")


def test_another_number_of_ranks_goes_on(as_rank, capsys):
    words = ("register", "pairs.csv", "-o", "two")
    assert as_rank(0, 3, *words) == as_rank(1, 3, *words) == 0
    assert pairs_in("two") == [f"000{k}_m{k - 1}_to_f{k - 1}" for k in (1, 2, 4, 5)]
    capsys.readouterr()
    assert as_rank(1, 2, *words) == 0
    said = capsys.readouterr()
    assert said.err == "rank 1 of 2: 2 of 2 pairs were complete and are kept\n"
    assert "report follows" in said.out
    assert as_rank(0, 2, *words) == 0
    said = capsys.readouterr()
    assert "rank 0 of 2: 2 of 3 pairs were complete and are kept\n" in said.err
    assert said.out.startswith("two/report.html: 5 pairs: NCC ")


def test_one_process_goes_on_alone_and_leaves_no_records(as_rank, capsys):
    words = ("evaluate", "bad.csv", "-o", "two")
    assert as_rank(1, 2, *words) == 0
    assert left("two") == ["rank-1-of-2-failed.json", "rank-1-of-2-measured.json"]
    assert main(list(words)) == 2
    assert left("two") == []
    assert main(["evaluate", "bad.csv", "-o", "one"]) == 2
    same_evaluations("one", "two")


def test_the_last_rank_says_what_failed_and_has_the_exit_status(as_rank, capsys):
    words = ("register", "bad.csv", "-o", "two")
    assert as_rank(1, 2, *words) == 0
    said = capsys.readouterr()
    assert said.out.startswith("rank 1 of 2: 1 pair done, 1 failed; the report follows")
    assert "error" not in said.err
    assert as_rank(0, 2, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("diffreg: error: bad.csv, line 3: ")
    assert lines[-1] == "diffreg: error: 1 of 5 pairs failed"
    assert Path("two/report.html").read_text().count("Failed: bad.csv, line 3") == 1


def test_a_failed_pair_is_tried_again_by_its_rank(as_rank, monkeypatch, capsys):
    register = cohort_module.register

    def fail(moving, fixed, **keywords):
        if moving.name == "m1.nii.gz":
            raise MemoryError("there is not enough memory")
        return register(moving, fixed, **keywords)

    words = ("register", "pairs.csv", "-o", "two")
    monkeypatch.setattr(cohort_module, "register", fail)
    assert as_rank(1, 2, *words) == 0
    assert as_rank(0, 2, *words) == 2
    monkeypatch.setattr(cohort_module, "register", register)
    assert as_rank(1, 2, *words) == 0
    assert left("two") == []
    assert "two/report.html: 5 pairs" in capsys.readouterr().out


def test_another_question_is_not_answered_by_the_records_of_the_last(as_rank, capsys):
    words = ("evaluate", "pairs.csv", "-o", "two")
    for number in range(2):
        assert as_rank(number, 2, *words) == 0
    save("m1_label.nii.gz", 0.6, label=True)
    Path("two/evaluation.json").unlink()
    assert as_rank(0, 2, *words) == 0
    assert not Path("two/evaluation.json").exists()
    assert as_rank(1, 2, *words) == 0
    assert main(["evaluate", "pairs.csv", "-o", "one"]) == 0
    same_evaluations("one", "two")


def test_displacements_that_are_given_are_measured_by_shares(as_rank, capsys):
    assert main(["register", "pairs.csv", "-o", "given"]) == 0
    (Path("given/0002_m1_to_f1/displacement.nii.gz")).write_bytes(b"damaged")
    (Path("given/0003_m2_to_f2")).rename("elsewhere")
    words = ("evaluate", "pairs.csv", "--displacements", "given", "-o")
    assert main([*words, "one"]) == 2
    capsys.readouterr()
    assert [as_rank(number, 2, *words, "two") for number in (1, 0)] == [0, 2]
    said = capsys.readouterr()
    assert said.out.startswith("rank 1 of 2: 1 pair done, 1 failed; the report follows")
    assert "2 of 5 pairs failed" in said.err
    same_evaluations("one", "two")


def test_more_ranks_than_pairs(as_rank):
    words = ("register", "pairs.csv", "-o", "two")
    assert [as_rank(number, 7, *words) for number in range(7)] == [0] * 7
    assert pairs_in("two") == [f"000{k + 1}_m{k}_to_f{k}" for k in range(5)]


# who is who


@pytest.mark.parametrize(("found", "words"), [
    ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK must be a whole number below WORLD_SIZE, 2, got 'a'"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be a whole number below WORLD_SIZE, 2, got '2'"),
    ({"RANK": "-", "WORLD_SIZE": "2"}, "RANK must be a whole number below WORLD_SIZE, 2, got '-'"),
    ({"WORLD_SIZE": "2"}, "RANK must be a whole number below WORLD_SIZE, 2, got ''"),
    ({"RANK": "1"}, "RANK must be a whole number below WORLD_SIZE, 1, got '1'"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number above 0, got '0'"),
    ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE must be a whole number above 0, got '1.5'"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK must be a whole number, got 'x'"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["register", "evaluate"])
def test_an_environment_that_says_no_rank(command, found, words, folder, monkeypatch, capsys):
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert main([command, "pairs.csv", "-o", "out"]) == 2
    assert capsys.readouterr().err == f"diffreg: error: {words}\n"
    assert not Path("out").exists()


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_job_is_one_rank_s(count):
    takers = [[n for n in range(count) if Rank(n, count).takes(job)] for job in range(1, 8)]
    assert all(len(ranks) == 1 for ranks in takers)
    sizes = [sum(Rank(n, count).takes(job) for job in range(1, 8)) for n in range(count)]
    assert max(sizes) - min(sizes) <= 1


def test_ranks_of_a_machine_take_its_gpus_in_turn(monkeypatch):
    for name, value in zip(NAMES, ("5", "8", "3"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cuda_device(this_rank()) == torch.device("cuda", 1)
    assert cuda_device(Rank()) == torch.device("cuda", 0)


def test_processes_of_one_number_on_two_machines_write_to_names_of_their_own(tmp_path, monkeypatch):
    names = []
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        with replacing(tmp_path / "report.html") as temporary:
            names.append(temporary.name)
            temporary.write_text("whole")
    assert names[0] != names[1]
