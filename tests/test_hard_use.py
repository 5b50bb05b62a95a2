"""What docs/reliability.md promises of kills, full disks, shared folders, memory and headers.

The small form of what was run by hand for longer: tests/long.md says how long.
"""

import gzip
import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from slope import Growth, trained
from test_interruption import picture

from diffreg.transforms import Field, Grid, write

pytestmark = [pytest.mark.slow, pytest.mark.alone]
TESTS = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
}
MANY = 10_000  # voxels along each of three axes


def started(words, folder):
    return subprocess.Popen(
        words,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("kind", "kills"), [("train", 3), ("cohort", 5)])
def test_killed_at_random_moments(kind, kills, tmp_path):
    process = started([sys.executable, TESTS / "kills.py", kind, "--kills", str(kills)], tmp_path)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert said.splitlines()[-1].startswith(f"{kind}: {kills} kills, ")


@pytest.fixture
def pair(tmp_path):
    for name, at in (("moving", 0.56), ("fixed", 0.5)):
        image = nib.Nifti1Image(picture(at, (48, 40)), np.diag([1.0, 1, 5, 1]))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    return tmp_path


REGISTER = ("-m", "diffreg.cli.main", "register", "moving.nii.gz", "fixed.nii.gz", "-o")


@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "a folder with results"])
def test_two_processes_on_one_folder(pair, there):
    """Whole results of one of them; the other has the same, or one line that says what became."""
    whole = started([sys.executable, *REGISTER, "out" if there else "alone"], pair)
    assert "report.html" in whole.communicate(timeout=120)[0]
    both = [started([sys.executable, *REGISTER, "out"], pair) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    wrong = [said[k].splitlines()[-1] for k in range(2) if both[k].returncode != 0]
    assert len(wrong) < 2, said
    expected = "diffreg: error: another process wrote into out meanwhile: its files stay, this "
    assert wrong in ([], [expected + "one's are dropped"])
    right = pair / ("out" if there else "alone")
    assert {p.name for p in (pair / "out").iterdir()} == {p.name for p in right.iterdir()}
    fields = [nib.load(f / "displacement.nii.gz").get_fdata() for f in (right, pair / "out")]
    assert np.array_equal(*fields)
    assert list(pair.rglob(".*")) == []


def can_mount():
    return (
        shutil.which("unshare")
        and not subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
        ).returncode
    )


@pytest.mark.parametrize("kilobytes", [8, 40, 60, 120])
def test_a_disk_that_is_full(pair, kilobytes):
    """A disk of its own, too small for the results, or for the report alone."""
    if not can_mount():
        pytest.skip("who runs this may not mount a disk")
    (pair / "disk").mkdir()
    shell = (
        f'mount -t tmpfs -o size={kilobytes}k none disk && {{ "$@"; echo status $?; find disk; }}'
    )
    words = ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, *REGISTER, "disk/out"]
    said = started(words, pair).communicate(timeout=120)[0].splitlines()
    at = said.index("status 2")
    assert said[at - 1].startswith("diffreg: error: disk/out: no space left on device: no file")
    assert said[at + 1 :] == ["disk"]


def nifti(shape, vectors=False):
    data = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_bytes())
    struct.pack_into(f"<{1 + len(shape)}h", data, 40, len(shape), *shape)
    struct.pack_into("<h", data, 68, 1007 if vectors else 0)
    return bytes(data)


def freesurfer():
    data = bytearray(nib.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_bytes())
    struct.pack_into(">3i", data, 4, MANY, MANY, MANY)
    return bytes(data)


def numpy_archive():
    out, header = io.BytesIO(), io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (MANY,) * 3}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("vec.npy", header.getvalue() + bytes(64))
    return out.getvalue()


def composite(path):
    """A displacement in an .h5 file with room for all its values, of which none is there."""
    grid = Grid((4, 5, 3), np.eye(4))
    write(path, Field(torch.zeros(1, 3, 4, 5, 3), grid), "itk-h5")
    with h5py.File(path, "r+") as file:
        group = file["TransformGroup/0"]
        group["TransformFixedParameters"][:3] = MANY
        del group["TransformParameters"]
        group.create_dataset("TransformParameters", (3 * MANY**3,), "f8", chunks=(1024,))


def claims(folder):
    sizes = " ".join([str(MANY)] * 3)
    mha = "NDims = 3\nBinaryData = True\nDimSize = {}\nElementType = MET_FLOAT\n"
    nrrd = "NRRD0004\ntype: float\ndimension: 3\nsizes: {}\nencoding: raw\nendian: little\n\n"
    files = {
        "volume.nii": nifti((MANY,) * 3),
        "volume.nii.gz": gzip.compress(nifti((MANY,) * 3)),
        "field.nii": nifti((MANY, MANY, MANY, 1, 3), vectors=True),
        "field.nii.gz": gzip.compress(nifti((MANY, MANY, MANY, 1, 3), vectors=True)),
        "volume.mgh": freesurfer(),
        "volume.mgz": gzip.compress(freesurfer()),
        "volume.mha": (mha.format(sizes) + "ElementDataFile = LOCAL\n").encode() + bytes(64),
        "volume.nrrd": nrrd.format(sizes).encode() + bytes(64),
        "volume.npz": numpy_archive(),
        "affine.mat": struct.pack("<5i", 0, 10**9, 1, 0, 5) + b"Affi\0" + bytes(96),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    composite(folder / "composite.h5")
    return [*files, "composite.h5"]


READ = """
import resource, sys, warnings
import h5py, nibabel, SimpleITK  # in memory before the limit
import numpy as np
from diffreg.data.images import read_image
from diffreg.data.transforms import read_displacement
from diffreg.transforms import FORMATS, Grid, read

warnings.simplefilter("ignore")
grid = Grid((4, 5, 3), np.eye(4))
readers = {"image": read_image, "displacement": read_displacement}
for name in (None, *FORMATS):
    readers[name] = lambda path, name=name: read(path, name, fixed=grid, moving=grid)
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**28,) * 2)
for path in sys.argv[1:]:
    for name, reader in readers.items():
        try:
            reader(path)
        except (ValueError, TypeError, OSError) as error:
            assert "\\n" not in str(error), (path, name)
        else:
            raise SystemExit(f"{path} was read as {name}")
print("all refused")
"""


def test_a_claim_of_10_12_voxels_takes_no_memory(tmp_path):
    """By any reader, in a process that may take 256 MiB more than what it has imported."""
    names = claims(tmp_path)
    process = started([sys.executable, "-c", READ, *names], tmp_path)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert said.splitlines()[-1] == "all refused"


class Leaking(Growth):
    def on_step(self, trainer, entry):
        self.kept = [*getattr(self, "kept", []), np.ones(2**15)]  # 256 KiB
        super().on_step(trainer, entry)


def test_memory_is_level_from_step_to_step():
    assert abs(trained(200, 5, validate=10**6).slope()) < 2**15


def test_a_leak_is_seen():
    assert trained(100, 5, Leaking(5), validate=10**6).slope() > 2**17
