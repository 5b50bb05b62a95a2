"""Several processes train as one would on the whole batch."""

import socket
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from runs import config_of, trainer
from test_trainer import save_images, weights
from torch import distributed

from diffreg.cli.main import main
from diffreg.training.log import read_log
from diffreg.training.ranks import Ranks, _telling_of_others, joined

pytestmark = pytest.mark.slow

CONFIG = """
[data]
images = 'images'
[augmentation]
amplitude = 0.5
sigma = 4.0
[model]
widths = [4, 8]
[optimizer]
learning_rate = 1e-3
clip_norm = 0.5
[training]
batch_size = 5
threads = 1
checkpoint_every = 10
device = 'cpu'
"""


def torchrun(folder, processes, *overrides):
    """`torchrun ... -m diffreg train config.toml`, whose port no other test has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launch, "--master-port", str(port), "-m", "diffreg"]
    done = subprocess.run(
        [*command, "train", "config.toml", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    save_images(folder / "images")
    (folder / "config.toml").write_text(CONFIG)
    return folder


def losses(folder):
    return [entry.total for entry in read_log(folder / "log.csv")]


def test_two_processes_match_one_with_the_joined_batch(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["train", "config.toml", "training.steps=20", "training.out=one"]) == 0
    status, said, errors = torchrun(folder, 2, "training.steps=20", "training.out=two")
    assert status == 0, errors
    assert said.count("20 steps") == 1  # the first rank speaks
    one, two = losses(folder / "one"), losses(folder / "two")
    assert len(one) == len(two) == 20
    assert two == pytest.approx(one, rel=1e-5)  # batches of 5: shares of 2 and 3
    for entry, other in zip(
        *(read_log(folder / n / "log.csv") for n in ("one", "two")), strict=True
    ):
        assert entry.smallest_determinant == pytest.approx(other.smallest_determinant, rel=1e-4)
        assert entry.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


def test_a_run_goes_on_with_another_number_of_processes(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["train", "config.toml", "training.steps=20", "training.out=whole"]) == 0
    assert main(["train", "config.toml", "training.steps=10", "training.out=parts"]) == 0
    status, _, errors = torchrun(folder, 2, "training.steps=20", "training.out=parts", "--resume")
    assert status == 0, errors
    assert losses(folder / "parts") == pytest.approx(losses(folder / "whole"), rel=1e-5)
    ends = [weights(folder / name / "last.pt") for name in ("whole", "parts")]
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-5)


def test_a_batch_with_less_pairs_than_processes(folder):
    status, _, errors = torchrun(folder, 2, "training.batch_size=1", "training.out=none")
    assert status != 0
    assert "training.batch_size must be at least the 2 processes, got 1" in errors
    assert not (folder / "none").exists()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("fails", [False, True], ids=["to its end", "that fails"])
def test_a_rank_that_fails_waits_for_no_other(monkeypatch, device, fails):
    """To end a group of nccl is to wait for all ranks: torchrun would not see the failure."""
    done = []
    for name in ("init_process_group", "barrier", "destroy_process_group"):
        monkeypatch.setattr(distributed, name, lambda *given, name=name, **_: done.append(name))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError) if fails else nullcontext(), joined(device):
        if fails:
            raise OSError("no such image")
    left = ["destroy_process_group"] if not fails or device == "cpu" else []
    assert done == ["init_process_group", *([] if fails else ["barrier"]), *left]


@pytest.mark.parametrize(("size", "count"), [(8, 3), (5, 2), (3, 3), (16, 1), (7, 4)])
def test_the_shares_make_the_batch(size, count):
    shares = [list(Ranks(rank, count).share(range(size))) for rank in range(count)]
    assert [k for share in shares for k in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_gpu_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="torch finds no GPU"), joined("cuda"):
        pass
    with pytest.raises(ValueError, match="torch finds no GPU"):
        trainer(config_of(save_images(tmp_path / "images"), tmp_path / "run", device="cuda"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer."),
        torch.distributed.DistNetworkError("The server socket has failed to listen\nport: 29500"),
    ],
)
def test_a_rank_whose_other_is_gone_says_so_in_a_line(error):
    said = r"another process of the run ended.*--resume"
    with pytest.raises(ConnectionError, match=said), _telling_of_others():
        raise error


def test_a_fault_of_a_rank_alone_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes"), _telling_of_others():
        raise RuntimeError("shapes do not fit")
