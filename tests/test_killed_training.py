"""SIGKILL at any moment, a save among them, and a full disk: the run goes on to the same bits."""

import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_trainer import save_images, weights

from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.log import read_log

pytestmark = [pytest.mark.slow, pytest.mark.alone]

STEPS = 40
CONFIG = f"""
[data]
images = 'images'
validation = ['images']
[augmentation]
amplitude = 0.5
sigma = 4.0
[model]
widths = [4, 8]
[training]
steps = {STEPS}
batch_size = 4
checkpoint_every = 3
validate_every = 20
threads = 1
device = 'cpu'
"""
# A process that is killed when half of its third checkpoint is written.
DIES_IN_A_SAVE = """
import os, signal, sys
from diffreg.training import checkpoint
from diffreg.cli.main import main
whole, saves = checkpoint.torch.save, []
def half(contents, file):
    whole(contents, file)
    saves.append(1)
    if len(saves) == 3:
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.torch.save = half
main(sys.argv[1:])
"""
# A process whose files may not grow beyond what a part of a checkpoint needs, as on a full disk.
ON_A_FULL_DISK = """
import resource, signal, sys
from diffreg.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration, and `whole`, what it gives when nothing happens."""
    folder = tmp_path_factory.mktemp("killed")
    save_images(folder / "images")
    (folder / "config.toml").write_text(CONFIG)
    finish(folder, "whole")
    return folder


def start(folder, out, *words, program=("-m", "diffreg"), **options):
    return subprocess.Popen(
        [sys.executable, *program, "train", "config.toml", f"training.out={out}", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(folder, out, *words):
    process = start(folder, out, "--resume", *words)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def check_same(folder, out):
    ends = [weights(folder / name / "last.pt") for name in ("whole", out)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    logs = [[entry[:11] for entry in read_log(folder / n / "log.csv")] for n in ("whole", out)]
    assert len(logs[0]) == STEPS and logs[0] == logs[1]
    assert not list((folder / out).rglob(".*"))


def test_killed_at_any_step(folder):
    """Five kills, each some steps after the one before, wherever in a step that is."""
    draw = random.Random(5)
    log = folder / "killed" / "log.csv"
    for _ in range(5):
        process = start(folder, "killed", "--resume")
        begun = len(read_log(log))
        goal = begun + draw.randint(1, 5)
        while process.poll() is None and len(read_log(log)) < goal:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if (folder / "killed" / "last.pt").exists():
            read_checkpoint(folder / "killed" / "last.pt")
    finish(folder, "killed")
    check_same(folder, "killed")


def test_killed_in_a_save(folder):
    process = start(folder, "save", program=("-c", DIES_IN_A_SAVE))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert read_checkpoint(folder / "save" / "last.pt")["step"] == 6
    finish(folder, "save")
    check_same(folder, "save")


def test_a_full_disk_loses_nothing(folder):
    finish(folder, "full", "training.steps=6")
    before = (folder / "full" / "last.pt").read_bytes()
    process = start(
        folder, "full", "--resume", program=("-c", ON_A_FULL_DISK, str(len(before) // 2))
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    line = said.strip().splitlines()[-1]
    assert line.startswith("diffreg: error: ") and "half-written" in line
    assert (folder / "full" / "last.pt").read_bytes() == before
    finish(folder, "full")
    check_same(folder, "full")
