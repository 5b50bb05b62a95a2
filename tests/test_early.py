"""What can be refused before the long work is: output folders, labels, images, a run's settings."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from runs import config_of
from test_cohort import blob, save
from test_trainer import save_images

import diffreg
from diffreg.affine import start as starts
from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.pairs import PairDataset
from diffreg.data.prepared_pairs import PreparedPairs
from diffreg.registration import pair as registration
from diffreg.system import atomic
from diffreg.system.atomic import remove_leftovers, replacing, staged
from diffreg.system.files import require_folder, require_place
from diffreg.training.checkpoint import write_checkpoint
from diffreg.training.config import Config
from diffreg.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (24, 20)
GONE = 2**22 + 1  # a number that no process has


def never(*arguments, **named):
    raise AssertionError("the long work has begun")


def mark_of(number, name):
    """The temporary name of a process of that number here."""
    return atomic.temporary_name(name).replace(f".{os.getpid()}-", f".{number}-", 1)


def elsewhere(number, name):
    """And on another machine, or in another container."""
    return mark_of(number, name).replace(atomic._place(), "0123abcd", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pair with labels; nothing is registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for name, at, label in (("m", 0.53, 1), ("f", 0.5, 1), ("o", 0.5, 2)):
        save(f"{name}.nii.gz", blob(SHAPE, at))
        save(f"{name}_label.nii.gz", label * (blob(SHAPE, at) > 100).astype(np.uint8))
    save("v_label.nii.gz", np.ones((*SHAPE, 3), np.uint8))
    monkeypatch.setattr(registration, "register_batch", never)
    monkeypatch.setattr(registration, "solved", never)
    monkeypatch.setattr(starts, "found_affine", never)
    return tmp_path


def refused(capsys, *words):
    assert main(["register", "m.nii.gz", "f.nii.gz", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffreg: error: ") and said.count("\n") == 1
    return said


def test_a_link_to_nowhere_is_no_output_folder(folder, capsys):
    (folder / "out").symlink_to("nowhere")
    said = refused(capsys, "-o", "out")
    assert "the output folder out is a link to nowhere, which does not exist" in said


def test_a_link_to_nowhere_above_is_found(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="link is a link to nowhere, which does not exist"):
        require_place(tmp_path / "link" / "run", "the output folder")


def test_threads_try_one_folder_and_leave_nothing(tmp_path):
    (tmp_path / mark_of(GONE, "trial")).mkdir()
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(lambda _: require_folder(tmp_path, "it"), range(400)))) == 400
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["0002_m_to_f", "b" * 255])
def test_what_a_killed_process_had_staged_goes_when_it_is_made_again(name, tmp_path):
    """And nothing else: not what another process is at, nor what is to become another result."""
    left = tmp_path / mark_of(GONE, name)
    parent = tmp_path / mark_of(1, name)
    others = [parent, tmp_path / mark_of(GONE, "0001_m_to_f"), tmp_path / elsewhere(GONE, name)]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "warped.nii.gz").touch()
    with staged(tmp_path / name) as inside:
        (inside / "metrics.json").touch()
    assert set(tmp_path.iterdir()) == {*others, tmp_path / name}


def test_what_another_machine_writes_stays_a_day(tmp_path):
    """Its processes, and those of another container, are not among those that are seen here."""
    new, old = (tmp_path / elsewhere(1, name) for name in ("new.npy", "old.npy"))
    for file in (new, old):
        file.touch()
    os.utime(old, (time.time() - 90000,) * 2)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_a_rank_that_goes_on_elsewhere_removes_what_it_had_staged(tmp_path, monkeypatch):
    left, other = (tmp_path / elsewhere(GONE, f"{rank}-out") for rank in (3, 2))
    for folder in (left, other):
        folder.mkdir()
    monkeypatch.setenv("RANK", "3")
    with staged(tmp_path / "out"):
        pass
    assert set(tmp_path.iterdir()) == {other, tmp_path / "out"}


def test_processes_of_one_number_do_not_write_the_same_file(tmp_path, monkeypatch):
    """Each container has a process 1, and they may share a cache."""
    with replacing(tmp_path / "a.npy") as here:
        here.write_text("here")
        monkeypatch.setattr(atomic, "_place", lambda: "0123abcd")
        with replacing(tmp_path / "a.npy") as there:
            there.write_text("there")
    assert (tmp_path / "a.npy").read_text() == "here"


@pytest.mark.parametrize("name", ["metrics.json", "jacobian.nii.gz"])
def test_a_folder_in_the_place_of_a_result(name, folder, capsys):
    (folder / "out" / name).mkdir(parents=True)
    said = refused(capsys, "-o", "out")
    assert f"out/{name} is a folder; a file of that name is to be written" in said


def test_what_the_system_says_of_rights_is_tried(folder, capsys, monkeypatch):
    """As of a disk that is read-only, or /proc, for root."""
    monkeypatch.setattr("os.access", lambda *arguments: True)
    made = os.mkdir

    def mkdir(path, *arguments, **named):
        if Path(path).parent.name == "locked":
            raise OSError(30, "Read-only file system", str(path))
        made(path, *arguments, **named)

    (folder / "locked").mkdir()
    monkeypatch.setattr("os.mkdir", mkdir)
    said = refused(capsys, "-o", "locked/out")
    assert "locked is not writable: read-only file system" in said
    assert "locked is not writable" in refused(capsys, "-o", "locked")


def test_trying_leaves_nothing(folder, capsys):
    (folder / "out").mkdir()
    before = sorted(folder.rglob("*"))
    for out in ("out", "other"):
        diffreg.registration.folders.check_output_folder(out)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("moving", "fixed", "message"),
    [
        ("m_label", "v_label", "is a volume of 24 x 20 x 3 voxels"),
        ("m_label", "o_label", "the labels of the two images have none in common but 0"),
    ],
)
def test_labels_that_do_not_fit(folder, capsys, moving, fixed, message):
    words = ("--moving-label", f"{moving}.nii.gz", "--fixed-label", f"{fixed}.nii.gz")
    assert message in refused(capsys, "-o", "out", *words)


def of_pictures(folder, name="pairs.csv"):
    for picture, at in (("m", 0.53), ("f", 0.5)):
        Pillow.fromarray(blob(SHAPE, at).astype(np.uint8)).save(folder / f"{picture}.png")
    (folder / name).write_text("moving,fixed\nm.nii.gz,f.nii.gz\nm.png,f.png\n")


@pytest.mark.parametrize("kept", [False, True])
def test_maps_of_the_determinant_of_pictures(kept, folder, capsys, monkeypatch):
    """Of a manifest as of a pair, before its first pair; also where all pairs are there."""
    of_pictures(folder)
    if kept:
        monkeypatch.undo()
        monkeypatch.chdir(folder)
        assert main(["register", "pairs.csv", "-o", "out", "--iterations", "1"]) == 0
        capsys.readouterr()
    assert main(["register", "pairs.csv", "-o", "out", "--jacobian", "--iterations", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffreg: error: pairs.csv, line 3: maps of the determinant are NIfTI")
    assert "a picture has no such grid: f.png; leave out --jacobian" in said
    assert said.count("\n") == 1 and (folder / "out").exists() == kept


def test_maps_of_the_determinant_of_a_grid_without_cells(folder, capsys):
    """Of one plane along another axis than the last; its slices are lines."""
    save("plane.nii.gz", np.ones((12, 1, 9), np.float32))
    (folder / "planes.csv").write_text("moving,fixed\nplane.nii.gz,plane.nii.gz\n")
    for words, shape in (([], [12, 1, 9]), (["--by-slice"], [12, 1])):
        assert main(["register", "planes.csv", "-o", "out", "--jacobian", *words]) == 2
        assert f"a grid of {shape} voxels has no cell" in capsys.readouterr().err


def test_what_a_pair_of_arrays_cannot_have_fails_before_it_is_registered(folder, capsys):
    np.savez("lines.npz", a=np.ones((12, 1)))
    (folder / "lines.csv").write_text("moving,fixed\nlines.npz:a,lines.npz:a\n")
    assert main(["register", "lines.csv", "-o", "out", "--jacobian"]) == 2
    assert "a grid of [12, 1] voxels has no cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("nibabel", ["register", "m.png", "f.png"], "nibabel is needed for NIfTI files"),
        ("matplotlib", ["register", "m.nii.gz", "f.nii.gz"], "matplotlib is needed for report"),
        ("matplotlib", ["register", "pairs.csv"], "matplotlib is needed for report.html: pip"),
        ("matplotlib", ["evaluate", "pairs.csv"], "matplotlib is needed for report.html: pip"),
    ],
)
def test_what_writes_the_results_is_not_installed(module, words, said, folder, capsys, monkeypatch):
    of_pictures(folder)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([*words, "-o", "out"]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_images_that_cannot_be_compared(folder):
    """By the affine start too, which comes first."""
    volume = Image(torch.rand(1, 1, 12, 10, 8), np.eye(4))
    with pytest.raises(ValueError, match=r"is a volume of .* take one slice of the volume too"):
        diffreg.register(str(folder / "m.nii.gz"), volume)
    skewed = np.eye(4)
    skewed[0, 1] = 0.5
    with pytest.raises(ValueError, match="right angles"):
        diffreg.register(volume, Image(volume.data, skewed))


# training


@pytest.fixture
def unread(monkeypatch):
    monkeypatch.setattr(PreparedPairs, "sample", never)


def test_a_start_of_another_network(tmp_path, unread):
    config = config_of(save_images(tmp_path / "images"), tmp_path / "run")
    sections = config.to_dict()
    other = Config.from_dict({**sections, "model": {"widths": [2, 4]}})
    weights = diffreg.models.build_model("lunet", widths=(2, 4)).state_dict()
    write_checkpoint(tmp_path / "other.pt", {"config": other.to_dict(), "weights": weights})
    sections["training"]["start"] = str(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"training.start: .*other\.pt has widths"):
        Trainer(Config.from_dict(sections), progress=False)


def test_a_crop_that_is_too_large(tmp_path, unread):
    config = config_of(save_images(tmp_path / "images"), tmp_path / "run")
    sections = config.to_dict()
    sections["augmentation"]["crop"] = [16, 40]
    with pytest.raises(ValueError, match=r"crop \[16, 40\] is larger than \[24, 20\]"):
        Trainer(Config.from_dict(sections), progress=False)


def test_images_of_two_sizes(tmp_path, monkeypatch):
    """Found at the second image, not behind the last one."""
    images = save_images(tmp_path / "images")
    nib.save(nib.Nifti1Image(blob((30, 20), 0.5), np.diag([2.0, 2, 4, 1])), images / "a0.nii")
    seen = []
    made = PreparedPairs.sample
    monkeypatch.setattr(
        PreparedPairs, "sample", lambda self, pair: seen.append(pair) or made(self, pair)
    )
    files = sorted(images.iterdir())
    pairs = [diffreg.data.manifest.Pair(moving, moving) for moving in files]
    with pytest.raises(ValueError, match="must have one size"):
        PairDataset(pairs)
    assert len(seen) == 1 and len(files) == 4


def test_a_measure_that_is_not_there(tmp_path, unread):
    config = config_of(save_images(tmp_path / "images"), tmp_path / "run")
    sections = config.to_dict()
    sections["objective"]["similarity"] = "nowhere.at_all:measure"
    with pytest.raises((ImportError, ValueError), match=r"nowhere"):
        Trainer(Config.from_dict(sections), progress=False)


def test_an_output_folder_that_cannot_be_made(tmp_path, unread):
    (tmp_path / "file").write_text("")
    config = config_of(save_images(tmp_path / "images"), tmp_path / "file" / "run")
    with pytest.raises(ValueError, match=r"the output folder .*file is a file, not a folder"):
        Trainer(config, progress=False)
