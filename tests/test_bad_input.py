"""Every mistake that a user can make with the command line: one line, status 2, nothing written."""

import ctypes
import gzip
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffreg.cli.main import main
from diffreg.training.checkpoint import FORMAT, load_network

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
PICTURE = np.add.outer(np.arange(20.0), np.sin(np.arange(16.0))).astype(np.float32)


def save(path, array, affine=AFFINE, **header):
    file = nib.Nifti1Image(array, affine)
    for key, value in header.items():
        file.header[key] = value
    nib.save(file, path)


def raw(shape, dtype_code=16, bits=32):
    """A NIfTI header that claims a shape, and few bytes behind it."""
    header = nib.Nifti1Header()
    header["dim"][:] = 1
    header["dim"][0] = len(shape)
    header["dim"][1 : 1 + len(shape)] = shape
    header["datatype"], header["bitpix"], header["vox_offset"] = dtype_code, bits, 352
    header["magic"] = b"n+1\0"
    header["pixdim"][1:4] = 1
    return header.binaryblock + bytes(4) + bytes(400)


class Trap:
    """A pickle of it makes a folder when it is loaded as pickles are."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def a_png(size):
    """A PNG file whose header claims a size."""
    out = io.BytesIO()
    Pillow.fromarray(PICTURE.astype(np.uint8)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file for each thing that can be wrong with one."""
    folder = tmp_path_factory.mktemp("files")
    save(folder / "fixed.nii.gz", PICTURE)
    save(folder / "moving.nii.gz", PICTURE.T.copy().T + 1)
    whole = gzip.decompress((folder / "fixed.nii.gz").read_bytes())
    (folder / "cut.nii").write_bytes(whole[:800])
    (folder / "cut.nii.gz").write_bytes((folder / "fixed.nii.gz").read_bytes()[:-40])
    (folder / "zero.nii").write_bytes(b"")
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "text.png").write_text("not an image")
    (folder / "a.gif").write_text("GIF")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        save(folder / f"{name}.nii", np.full_like(PICTURE, value))
    save(folder / "flat.nii", np.full((20, 16), 7, np.float32))
    save(folder / "one.nii", np.ones((1, 1), np.float32))
    save(folder / "four.nii", np.zeros((20, 16, 3, 5), np.float32))
    save(folder / "volume.nii", np.stack([PICTURE] * 3, -1))
    save(folder / "complex.nii", PICTURE.astype(np.complex64))
    colours = np.zeros((20, 16, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, AFFINE), folder / "rgb.nii")
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(
        folder / "rgb.png"
    )
    Pillow.fromarray(PICTURE.astype(np.uint8)).save(folder / "grey.png")
    (folder / "huge.nii").write_bytes(raw((32767, 32767, 1000)))
    (folder / "huge.nii.gz").write_bytes(gzip.compress(raw((30000, 30000))))
    (folder / "huge.png").write_bytes(a_png((10**6, 10**6)))
    (folder / "empty.nii").write_bytes(raw((0, 5)))
    save(
        folder / "singular.nii",
        PICTURE,
        np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    other_tools(folder)
    (folder / "magic.nii").write_bytes(whole[:344] + b"xyz\0" + whole[348:])
    save(folder / "fraction.nii", PICTURE)
    checkpoints(folder)
    (folder / "config.toml").write_text("[training]\nsteps = 3\n")
    (folder / "typo.toml").write_text("[training]\nstep = 3\n")
    (folder / "type.toml").write_text('[training]\nsteps = "many"\n')
    (folder / "broken.toml").write_text("[training\n")
    manifests(folder)
    return folder


def other_tools(folder):
    """Fields that are no displacements of ITK's."""
    for name, shape in (("NREG_TRANS", (20, 16, 1, 1, 3)), ("Mapping", (20, 16, 3, 1, 3))):
        file = nib.Nifti1Image(np.ones(shape, np.float32), AFFINE)
        file.header.set_intent(1007, name=name)
        nib.save(file, folder / f"{name}.nii")
    save(folder / "fsl.nii", np.ones((20, 16, 3, 3), np.float32))


def checkpoints(folder):
    torch.save({"epoch": 3}, folder / "foreign.pt")
    torch.save({"format": FORMAT}, folder / "hollow.pt")
    torch.save({"format": "diffreg checkpoint 0"}, folder / "older.pt")
    for name in ("net.pt2", "net.onnx"):  # by their names alone
        torch.save({}, folder / name)
    config = {"model": {"name": "lunet", "widths": [2, 4]}}
    torch.save({"format": FORMAT, "config": config, "weights": {}}, folder / "unfit.pt")
    other = {"model": {"name": "none"}}
    torch.save({"format": FORMAT, "config": other, "weights": {}}, folder / "model.pt")
    torch.save({"format": FORMAT, "trap": Trap()}, folder / "trap.pt")
    (folder / "cut.pt").write_bytes((folder / "foreign.pt").read_bytes()[:200])
    (folder / "zero.pt").write_bytes(b"")
    with zipfile.ZipFile(folder / "archive.pt", "w") as archive:
        archive.writestr("a.txt", "text")


def manifests(folder):
    (folder / "nothing.csv").write_text("")
    (folder / "head.csv").write_text("moving,fixed\n")
    (folder / "column.csv").write_text("moving,fixed,gruop\n")
    row = "moving.nii.gz,fixed.nii.gz\n"
    (folder / "twice.csv").write_text("moving,fixed\n" + row + row)
    (folder / "missing.csv").write_text("moving,fixed\nx.nii,fixed.nii.gz\n")
    (folder / "nobody.csv").write_text("moving,fixed\n~nobody-9/x.nii,fixed.nii.gz\n")
    (folder / "nobody.toml").write_text("[data]\nimages = '~nobody-9/x.nii'\n")
    (folder / "good.csv").write_text("moving,fixed\n" + row)
    (folder / "key.toml").write_text('[[pair]]\nmoving = "moving.nii.gz"\nfixd = "fixed.nii.gz"\n')
    (folder / "type_of.toml").write_text('[[pair]]\nmoving = 3\nfixed = "fixed.nii.gz"\n')


@pytest.fixture
def here(files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    return files


TO = "fixed.nii.gz -o out"
# The command line, and the line that it gets.
TABLE = [
    # files
    (f"register none.nii {TO}", "none.nii does not exist"),
    (f"register . {TO}", ". is a folder, not an image"),
    (f"register cut.nii {TO}", "cut.nii is truncated or damaged: its header claims 1,280 bytes"),
    (f"register cut.nii.gz {TO}", "cut.nii.gz is truncated or damaged: "),
    (f"register zero.nii {TO}", "zero.nii is empty: 0 bytes"),
    (f"register text.nii.gz {TO}", "text.nii.gz is not a readable NIfTI file"),
    (f"register text.png {TO}", "text.png is not a readable PNG file"),
    (f"register a.gif {TO}", "a.gif: the name of an image must end in one of .nii, .nii.gz, .mgz"),
    (f"register magic.nii {TO}", "magic.nii is not a readable NIfTI file"),
    # numbers
    (f"register nan.nii {TO}", "nan.nii holds no number: every voxel is NaN"),
    (f"register inf.nii {TO}", "inf.nii holds no number: every voxel is NaN"),
    (f"register flat.nii {TO}", "flat.nii is 7 everywhere: there is nothing to align"),
    (f"register one.nii {TO}", "one.nii is not an image: its shape is (1, 1)"),
    (f"register empty.nii {TO}", "empty.nii is empty: its shape is (0, 5)"),
    (f"register huge.nii {TO}", "huge.nii is truncated or damaged: its header claims 4,294,705"),
    (f"register huge.nii.gz {TO}", "huge.nii.gz is truncated or damaged: its header claims"),
    (f"register huge.png {TO}", "huge.png is too large: its shape is (1000000, 1000000)"),
    (f"register four.nii {TO}", "four.nii is a series of 5 volumes, shape (20, 16, 3, 5); --time"),
    (f"register volume.nii {TO}", "volume.nii is a volume of 20 x 16 x 3 voxels and fixed.nii.gz"),
    (f"register complex.nii {TO}", "complex.nii holds complex numbers"),
    (f"register rgb.nii {TO}", "rgb.nii holds colours (RGB)"),
    ("register rgb.png grey.png -o out", "rgb.png is a colour image"),
    # headers
    (f"register singular.nii {TO}", "singular.nii: the affine in the header is singular"),
    (f"register grey.png {TO}", "grey.png and fixed.nii.gz do not belong together"),
    # options
    (f"register moving.nii.gz {TO} --method network", "--method network needs --checkpoint"),
    (f"register moving.nii.gz {TO} --slice 1", "--slice is for volumes"),
    (f"register moving.nii.gz {TO} --fixed-mask fraction.nii", "fraction.nii is no label image"),
    ("register moving.nii.gz -o out", "moving.nii.gz has no FIXED beside it"),
    ("register good.csv -o out --slice 1", "a manifest has the column slice"),
    ("register good.csv -o out --fixed-mask fixed.nii.gz", "a manifest has the column fixed_mask"),
    ("register good.csv -o out --batch-size 0", "--batch-size must be at least 1, got 0"),
    ("register good.csv fixed.nii.gz -o out", "good.csv: the name of an image must end in"),
    ("evaluate good.csv -o out --displacements . --method variational", "leave out --method"),
    ("evaluate good.csv -o out --displacements . --checkpoint foreign.pt", "out --checkpoint"),
    ("evaluate good.csv -o out --displacements none", "the folder of displacements none does not"),
    # manifests
    ("register none.csv -o out", "none.csv does not exist"),
    ("evaluate nothing.csv -o out", "nothing.csv is empty: its first line must name the columns"),
    ("register head.csv -o out", "head.csv lists no pair"),
    ("register column.csv -o out", "no column 'gruop'; the nearest is group"),
    ("evaluate twice.csv -o out", "line 3: this pair is there twice, first in twice.csv, line 2"),
    ("register missing.csv -o out", "missing.csv, line 2: moving x.nii does not exist"),
    ("register nobody.csv -o out", "line 2: moving ~nobody-9/x.nii does not exist"),
    ("train nobody.toml", "data.images: ~nobody-9/x.nii: ~nobody-9 is nobody's home"),
    ("train config.toml training.out=~nobody-9/r", "training.out: ~nobody-9/r: ~nobody-9 is"),
    ("register key.toml -o out", "key.toml, pair 1: there is no column 'fixd'; the nearest is"),
    ("evaluate type_of.toml -o out", "pair 1: moving must be a text on one line, got 3"),
    ("evaluate a.gif -o out", "a manifest is a folder, or its name ends in .csv, .tsv,"),
    # checkpoints
    (f"register moving.nii.gz {TO} --checkpoint none.pt", "none.pt does not exist"),
    (f"register moving.nii.gz {TO} --checkpoint fixed.nii.gz", "fixed.nii.gz is no checkpoint"),
    (f"register moving.nii.gz {TO} --checkpoint net.pt2", "net.pt2 is an exported program"),
    (f"register moving.nii.gz {TO} --checkpoint net.onnx", "diffreg export CHECKPOINT -o NAME.pt"),
    (
        f"register moving.nii.gz {TO} --checkpoint zero.pt",
        "zero.pt is no checkpoint that can be read: it is empty",
    ),
    (f"register moving.nii.gz {TO} --checkpoint cut.pt", "cut.pt is no checkpoint"),
    (f"register moving.nii.gz {TO} --checkpoint archive.pt", "archive.pt is no checkpoint"),
    (f"register moving.nii.gz {TO} --checkpoint foreign.pt", "foreign.pt is no checkpoint of this"),
    (f"register moving.nii.gz {TO} --checkpoint hollow.pt", "hollow.pt is no checkpoint that"),
    (f"register moving.nii.gz {TO} --checkpoint older.pt", "'diffreg checkpoint 0'"),
    (f"register moving.nii.gz {TO} --checkpoint unfit.pt", "weights do not fit the network"),
    (f"register moving.nii.gz {TO} --checkpoint model.pt", "model.name must be one of"),
    (f"register moving.nii.gz {TO} --checkpoint trap.pt", "trap.pt is no checkpoint that can be"),
    ("evaluate good.csv -o out --checkpoint trap.pt", "trap.pt is no checkpoint that can be"),
    # displacements
    ("apply none.nii moving.nii.gz -o out.nii", "none.nii does not exist"),
    ("apply zero.nii moving.nii.gz -o out.nii", "zero.nii is not a readable NIfTI file"),
    ("apply fixed.nii.gz moving.nii.gz -o out.nii", "fixed.nii.gz is no displacement file"),
    ("apply a.gif moving.nii.gz -o out.nii", "a displacement file must end in .nii.gz or .nii"),
    ("apply NREG_TRANS.nii moving.nii.gz -o out.nii", "is a transformation of NiftyReg (intent"),
    ("certify Mapping.nii", "Mapping.nii is a deformation of SPM (y_*.nii, intent name Map"),
    ("certify fsl.nii", "fsl.nii is a field of shape (20, 16, 3, 3), which does not say"),
    # settings
    ("train none.toml", "none.toml does not exist"),
    ("train broken.toml", "broken.toml is not TOML"),
    ("train typo.toml", "there is no setting training.step"),
    ("train type.toml", "training.steps must be a whole number, got 'many'"),
    ("train config.toml training.steps", "a setting must be section.key=value"),
    # where the results go
    ("register moving.nii.gz fixed.nii.gz -o none/out", "/none does not exist"),
    ("register moving.nii.gz fixed.nii.gz -o a.gif", "folder a.gif is a file, not a folder"),
    ("register moving.nii.gz fixed.nii.gz -o /dev/full", "/dev/full is a file, not a folder"),
    ("register good.csv -o none/out", "/none does not exist"),
    ("evaluate good.csv -o a.gif", "folder a.gif is a file, not a folder"),
]  # fmt: skip


@pytest.mark.parametrize("words, line", TABLE, ids=[words for words, _ in TABLE])
def test_a_mistake_is_one_line(words, line, here, capsys):
    before = sorted(here.iterdir())
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert line in said.err.splitlines()[-1]
    assert said.err.startswith("diffreg: error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(here.iterdir()) == before


def test_a_damaged_name_in_a_checkpoint_is_one_line_in_python_too(tmp_path):
    broken = {"data": {"sl\nices": [1]}}
    torch.save({"format": FORMAT, "config": broken, "weights": {}}, tmp_path / "name.pt")
    with pytest.raises(ValueError, match=r"there is no setting data\.sl ices") as caught:
        load_network(tmp_path / "name.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz", "huge.png"])
def test_a_header_is_not_believed(name, here, capsys):
    """A claim of up to 10^12 voxels takes no memory."""
    tracemalloc.start()
    try:
        assert main(["register", name, "fixed.nii.gz", "-o", "out"]) == 2
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24  # of linux/capability.h and linux/prctl.h


def command(folder, *words, limit=None):
    """`diffreg WORDS` as a process of its own, its files no larger than `limit` bytes; where root
    runs it, permissions hold for it as for everybody."""

    def prepare():
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "diffreg.cli.main", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        preexec_fn=prepare,
        timeout=120,
    )


@pytest.fixture
def pair(tmp_path):
    save(tmp_path / "moving.nii.gz", PICTURE)
    save(tmp_path / "fixed.nii.gz", PICTURE[::-1].copy())
    (tmp_path / "pairs.csv").write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n")
    return tmp_path


@pytest.mark.parametrize(
    "words", ["register moving.nii.gz fixed.nii.gz -o out", "evaluate pairs.csv -o out"]
)
def test_a_full_disk_leaves_nothing_half_written(words, pair):
    """Files may grow to 1,000 bytes, which none of the results fits into."""
    done = command(pair, *words.split(), limit=1000)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "diffreg: error: out: file too large: no file was left half-written"
    )
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    left = sorted(path.name for path in pair.rglob("*") if path.is_file())
    assert left == ["fixed.nii.gz", "moving.nii.gz", "pairs.csv"]


def test_a_disk_that_fills_up_keeps_what_was_complete(pair):
    """The report does not fit any more; the pair before it does, and is kept."""
    done = command(pair, "register", "pairs.csv", "-o", "out", limit=20_000)
    assert done.returncode == 2
    assert "file too large" in done.stderr
    metrics = pair / "out" / "0001_moving_to_fixed" / "metrics.json"
    assert json.loads(metrics.read_text())["folded_percent"] == 0
    assert not (pair / "out" / "report.html").exists()
    assert [path for path in pair.rglob("*") if path.name.startswith(".")] == []


def test_a_folder_without_permission(pair):
    (pair / "locked").mkdir(mode=0o500)
    done = command(pair, "register", "moving.nii.gz", "fixed.nii.gz", "-o", "locked/out")
    assert done.returncode == 2
    assert done.stderr == (
        "diffreg: error: the folder to make the output folder in, "
        f"{pair / 'locked'} is not writable\n"
    )


def test_nobody_reads_on(pair):
    """`diffreg info | head -0`."""
    line = f"{sys.executable} -m diffreg.cli.main info | head -c 0"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
