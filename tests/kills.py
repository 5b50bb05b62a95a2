"""SIGKILL at random moments of training and of a cohort: all files are whole, and it goes on.

    python tests/kills.py train|cohort [--kills 200] [--seed 0]

Every process is a fork of this one, which has imported all, so that a moment is one of its work.
After each kill everything in the folder is read; when a run has come to its end, its bits are
those of one that nobody stopped, nothing temporary is left, and the next begins in an empty folder.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork

import nibabel as nib
import numpy as np
import torch
from test_interruption import picture
from test_killed_training import CONFIG, check_same
from test_trainer import save_images

from diffreg.cli.main import main as diffreg
from diffreg.registration._json import read_json
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.log import read_log

PAIRS = 4
SAME = ("displacement.nii.gz", "warped.nii.gz", "affine.mat")


def started(words: list[str], folder: Path) -> int:
    """The number of a process that runs `diffreg WORDS` in a folder."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.chdir(folder)
            with open("said", "w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            status = diffreg(words)
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make_training(folder: Path) -> list[str]:
    save_images(folder / "images")
    (folder / "config.toml").write_text(CONFIG)
    return ["train", "config.toml", "--resume", "training.out="]


def read_training(folder: Path, out: str) -> None:
    if (folder / out / "last.pt").exists():
        read_checkpoint(folder / out / "last.pt")
    if (folder / out / "log.csv").exists():
        read_log(folder / out / "log.csv")


def make_cohort(folder: Path) -> list[str]:
    lines = ["moving,fixed"]
    for k in range(PAIRS):
        for name, at in ((f"m{k}", 0.54 + k / 100), (f"f{k}", 0.5)):
            image = nib.Nifti1Image(picture(at, (48, 40)), np.diag([1.0, 1, 5, 1]))
            nib.save(image, folder / f"{name}.nii.gz")
        lines.append(f"m{k}.nii.gz,f{k}.nii.gz")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return ["register", "pairs.csv", "-o", ""]


def read_cohort(folder: Path, out: str) -> None:
    """No folder of a pair without all of its files, each with the bits of the undisturbed run."""
    whole = folder / "whole"
    for pair in (folder / out).glob("[0-9]*_to_*"):
        there = {path.name for path in pair.iterdir()}
        assert there == {path.name for path in (whole / pair.name).iterdir()}, (pair, there)
        read_json(pair / "metrics.json")
        for name in SAME:
            found, right = pair / name, whole / pair.name / name
            assert found.exists() == right.exists()
            if right.suffix == ".gz":
                arrays = [np.asanyarray(nib.load(path).dataobj) for path in (found, right)]
                assert arrays[0].tobytes() == arrays[1].tobytes(), found
    page = folder / out / "report.html"
    assert not page.exists() or page.read_text().rstrip().endswith("</html>")


def check_cohort(folder: Path, out: str) -> None:
    read_cohort(folder, out)
    names = [
        sorted(str(p.relative_to(folder / o)) for p in (folder / o).rglob("*"))
        for o in ("whole", out)
    ]
    assert names[0] == names[1], set(names[0]) ^ set(names[1])


KINDS: dict[str, tuple[Callable, Callable, Callable]] = {
    "train": (make_training, read_training, check_same),
    "cohort": (make_cohort, read_cohort, check_cohort),
}


def killed(kind: str, kills: int, seed: int, folder: Path) -> str:
    """Kills so many processes; what is wrong raises."""
    make, read, check = KINDS[kind]
    *words, last = make(folder)
    draw, done, ends = random.Random(seed), 0, 0
    began = time.monotonic()
    assert ended(started([*words, last + "whole"], folder)) == 0, (folder / "said").read_text()
    longest = time.monotonic() - began
    while done < kills:
        child = started([*words, last + "out"], folder)
        # Often early, so that runs grow old by many kills.
        time.sleep(longest * draw.random() ** 2)
        os.kill(child, signal.SIGKILL)
        status = ended(child)
        assert status in (0, -signal.SIGKILL), (status, (folder / "said").read_text())
        done += status != 0
        read(folder, "out")
        if status == 0 or done == kills:
            assert status == 0 or ended(started([*words, last + "out"], folder)) == 0
            check(folder, "out")
            shutil.rmtree(folder / "out")
            ends += 1
    return f"{kind}: {done} kills, {ends} runs came to their end with the bits of one undisturbed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(killed(asked.kind, asked.kills, asked.seed, Path(folder)))


if __name__ == "__main__":
    main()
