"""A queue announces a time limit: training keeps every step that it took, and goes on."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_trainer import save_images

from diffreg.cli.main import main
from diffreg.data.store import Kept
from diffreg.system.atomic import alone_in
from diffreg.system.signals import ENDING, whole
from diffreg.training import loading
from diffreg.training import trainer as trainers
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.loading import telling_of_workers
from diffreg.training.log import ValidationLog, read_log

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = """
[data]
images = 'images'
validation = ['images']
[model]
widths = [2, 4]
[training]
steps = 6
batch_size = 2
validate_every = 2
threads = 1
device = 'cpu'
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `diffreg train`; `stopping` is sent a signal by what it calls."""
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "images")
    (tmp_path / "a.toml").write_text(CONFIG)
    return lambda out, *words: main(["train", "a.toml", f"training.out={out}", *words])


def signalled(monkeypatch, name, number, when):
    """What the trainer calls by a name is signalled at its call of that number."""
    found, calls = getattr(trainers, name), []

    def calling(*given, **named):
        calls.append(1)
        if len(calls) == when:
            os.kill(os.getpid(), number)
        return found(*given, **named)

    monkeypatch.setattr(trainers, name, calling)


def check_same(tmp_path, one, other):
    contents = [read_checkpoint(tmp_path / out / "last.pt") for out in (one, other)]
    ends = [found["weights"] for found in contents]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert contents[0]["best"] == contents[1]["best"]
    logs = [read_log(tmp_path / out / "validation.csv", ValidationLog) for out in (one, other)]
    assert str(logs[0]) == str(logs[1])


@pytest.mark.parametrize("number", [n for n in ENDING if n != signal.SIGINT], ids=lambda n: n.name)
def test_the_step_is_finished_and_kept(number, run, tmp_path, monkeypatch, capsys):
    """By default it dies without a word, and the steps since the last checkpoint with it."""
    step = trainers.Steps.take

    def told(self, at, batch):
        if at == 2:
            os.kill(os.getpid(), number)
        return step(self, at, batch)

    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, which would be kept so
    try:
        with monkeypatch.context() as patched:
            patched.setattr(trainers.Steps, "take", told)
            assert run("run") == 128 + number
    finally:
        signal.signal(number, before)
    assert "every checkpoint is whole; --resume goes on" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / "run/last.pt")["step"] == 3
    if number == signal.SIGTERM:
        assert run("run", "--resume") == run("whole") == 0
        check_same(tmp_path, "whole", "run")


@pytest.mark.parametrize("when, step", [(1, 2), (2, 4), (3, 6)])
def test_a_validation_that_was_broken_off_is_done_when_it_goes_on(
    when, step, run, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        signalled(patched, "validate", signal.SIGTERM, when)
        assert run("run") == 143
    found = read_checkpoint(tmp_path / "run/last.pt")
    assert (found["step"], found["unvalidated"]) == (step, True)
    for _ in range(2):
        assert run("run", "--resume") == 0
    assert run("whole") == 0
    check_same(tmp_path, "whole", "run")


def test_a_checkpoint_is_finished(run, tmp_path, monkeypatch):
    """torch makes another error of what is raised while it writes."""
    write = trainers.write_checkpoint

    def told(path, contents):
        os.kill(os.getpid(), signal.SIGTERM)
        write(path, contents)

    with monkeypatch.context() as patched:
        patched.setattr(trainers, "write_checkpoint", told)
        assert run("run", "training.checkpoint_every=3") == 143
    assert read_checkpoint(tmp_path / "run/last.pt")["step"] == 2  # best.pt was written


def test_before_the_first_step_nothing_is_kept(run, tmp_path, monkeypatch):
    def told(self, at):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainers.Steps, "drawn", told)
    assert run("run") == 143
    assert not (tmp_path / "run/last.pt").exists()


def test_ctrl_c_ends_a_step_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt), whole():
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it went on")
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_nohup_ignores_stays_ignored(run, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signalled(monkeypatch, "validate", signal.SIGHUP, 1)
        assert run("run") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_runs_into_one_folder_are_refused(run, tmp_path, capsys):
    """Tasks of an array, or of srun without torchrun: each wrote over the other's checkpoints."""
    (tmp_path / "run").mkdir()
    there, gone = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with alone_in(tmp_path / "run", ""):
            os.write(there[1], b".")
            os.close(gone[1])
            os.read(gone[0], 1)
        os._exit(0)
    os.read(there[0], 1)
    assert run("run") == 2
    said = capsys.readouterr().err
    assert "another process trains into" in said and "give another training.out" in said
    os.close(gone[1])
    os.waitpid(child, 0)
    assert run("run") == 0
    assert not list((tmp_path / "run").glob(".*"))


def test_a_lock_that_is_removed_as_it_is_taken_is_none(tmp_path, monkeypatch):
    """Who leaves removes the file: locked by its open name alone, a third would lock a new one."""
    locked, lock = [], fcntl.lockf

    def leaving(file, how):
        lock(file, how)
        locked.append(os.fstat(file.fileno()).st_ino)
        if len(locked) == 1:
            (tmp_path / ".lock").rename(tmp_path / "removed")

    monkeypatch.setattr(fcntl, "lockf", leaving)
    with alone_in(tmp_path, "in use"):
        assert len(locked) == 2
        assert (tmp_path / ".lock").stat().st_ino == locked[1]


def test_a_disk_whose_files_are_never_themselves_is_as_one_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with alone_in(tmp_path, "in use"):
        pass


# Processes that read ahead


@pytest.mark.parametrize(
    "error, said",
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "was killed, per"),
        (RuntimeError("Too many open files. Communication with the"), "ulimit -n"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "2 processes .*not be started"),
    ],
)
def test_what_befalls_workers_is_told_in_words(error, said):
    with pytest.raises(OSError, match=said), telling_of_workers(2):
        raise error


def test_a_worker_that_is_killed_while_a_step_is_taken_is_one_line(run, monkeypatch, capsys):
    """torch raises it wherever the process is that takes the steps."""

    def killed(self, at, batch):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(trainers.Steps, "take", killed)
    assert run("run") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("diffreg: error: a process that reads ahead was killed")


def test_a_worker_leaves_the_first_signal_to_the_process_that_takes_the_steps():
    child = os.fork()
    if child == 0:
        loading._heed_second_signal(0)
        signal.raise_signal(signal.SIGTERM)
        os.write(1, b"")
        signal.raise_signal(signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_workers_may_open_what_the_system_allows():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        loading._allow_files()
        os._exit(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(soft, hard))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.slow
def test_a_signal_to_all_processes_keeps_the_steps(tmp_path):
    """As Slurm sends it, to the workers too."""
    save_images(tmp_path / "images")
    (tmp_path / "a.toml").write_text(CONFIG)
    words = ["training.steps=100000", "data.cache=cache", "data.workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffreg", "train", "a.toml", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run/log.csv"
    while process.poll() is None and not (log.exists() and len(read_log(log)) > 4):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert read_checkpoint(tmp_path / "run/last.pt")["step"] == len(read_log(log)) > 4


# A full disk


def test_a_full_disk_is_told_with_the_file_of_the_cache(tmp_path):
    """numpy says how much it could write, not why."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = Kept(tmp_path / "cache")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            kept.put("a", torch.zeros(10000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.strerror == "File too large"
    assert raised.value.filename == str(kept._path("a"))
    assert not any((tmp_path / "cache").iterdir())
    assert torch.equal(kept.put("a", torch.ones(3)), torch.ones(3))
