"""Every reader on damaged files: what is wrong is said, nothing crashes, hangs or takes memory.

600 files in a normal run; DIFFREG_FUZZ=100000 makes it as many as that.
"""

import gzip
import io
import json
import os
import random
import resource
import signal
import struct
import zipfile
import zlib

import drawn_transforms as drawn
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image as Pillow

from diffreg.data.geometry import Image
from diffreg.data.images import count_slices, read_image
from diffreg.data.manifest import read_manifest
from diffreg.data.points import read_points
from diffreg.data.transforms import read_displacement, write_displacement
from diffreg.models import build_model
from diffreg.registration._json import read_json
from diffreg.training.checkpoint import load_network, write_checkpoint
from diffreg.training.config import Config, load_config
from diffreg.transforms import FORMATS, Chain, read, write
from diffreg.transforms.points import read_point_file

# A damaged header may well be an odd one that is read all the same.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::diffreg.system.files.FileWarning"),
]

CASES = int(os.environ.get("DIFFREG_FUZZ", "600"))
FIRST = int(os.environ.get("DIFFREG_FUZZ_FIRST", "0"))
SECONDS = 10  # after which a reader counts as hanging
KILOBYTES = 200_000  # more than which no file of some hundred bytes may add to the peak of memory
FIXED = drawn.grid(np.random.default_rng(0), (4, 5, 3))
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
WORDS = [b"\x00", b"-1", b"1e999", b"nan", b'"', b"'", b",", b"\n", b"[[", b"{", b"=", b"\xff\xfe"]
WORDS += [b"[" * 3000, b"../" * 40, b"9" * 5000, "\N{ZERO WIDTH SPACE}".encode(), b"\\u0000"]


def mutated(data, rng):
    """The bytes with one to four things done to them."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(7)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[at:] = b""
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = rng.randbytes(size)
        elif kind == 4:
            value = rng.choice(EXTREMES)
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", value)
        elif kind == 5:
            data[at : at + size] = data[at : at + size] * 2
        else:
            data[at:at] = rng.choice(WORDS)
    return bytes(data)


def in_header(data, rng, length):
    """The same, more often in the first bytes, where it does most."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    return mutated(data[:length], rng) + data[length:]


def in_gzip(data, rng):
    """Damaged inside and packed again, or damaged outside."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    return gzip.compress(in_header(gzip.decompress(data), rng, 352), 1)


def in_zip(data, rng):
    """One member damaged inside and packed again, or the archive damaged."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        chosen = rng.choice(before.namelist())
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, in_header(content, rng, 128) if name == chosen else content)
    return out.getvalue()


def in_png(data, rng):
    """One chunk damaged and its checksum mended, or the file damaged."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    chunks, at = [], 8
    while at < len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = rng.randrange(len(chunks))
    name, content = chunks[chosen]
    if name == b"IDAT" and rng.random() < 0.5:
        content = zlib.compress(mutated(zlib.decompress(content), rng))
    else:
        content = mutated(content, rng)
    chunks[chosen] = (name, content)
    parts = [data[:8]]
    for name, content in chunks:
        parts += [struct.pack(">I", len(content)), name, content]
        parts.append(struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(parts)


def any_image(path):
    count_slices(path)
    read_image(path, label=True) if path.stat().st_size % 2 else read_image(path)


def transform_as(kind):
    """A reader that takes a file for one of every format; in its own it may be refused."""

    def reader(path):
        for name in (None, *FORMATS):
            try:
                read(path, name, fixed=FIXED, moving=FIXED)
            except (ValueError, OSError) as error:
                if "\n" in str(error) or str(path) not in str(error):
                    raise AssertionError(f"as {name}: {error!r}") from error
            except TypeError as error:
                raise AssertionError(f"as {name}: {error!r}") from error
        read(path, kind, fixed=FIXED, moving=FIXED)

    return reader


def transforms_in(folder):
    """name -> format, a file each."""
    rng = np.random.default_rng(0)
    field = drawn.field(rng, FIXED)
    affine = drawn.affine(rng)
    chain = Chain((field, affine, field))
    names = {
        "chain.tfm": ("itk-text", chain),
        "chain.h5": ("itk-h5", chain),
        "affine.mat": ("itk-matlab", affine),
        "flirt.mat": ("fsl-flirt", affine),
        "absolute.nii": ("fsl-warp-absolute", field),
        "freesurfer.lta": ("freesurfer-lta", affine),
        "freesurfer.nii": ("freesurfer-warp", field),
        "niftyreg.nii": ("niftyreg-deformation", field),
        "niftyreg.txt": ("niftyreg-affine", affine),
        "greedy.mat": ("greedy", affine),
        "elastix.txt": ("elastix", affine),
        "voxels.nii": ("learn2reg", field),
        "voxelmorph.npz": ("voxelmorph", field),
    }
    for name, (kind, transform) in names.items():
        write(folder / name, transform, kind, fixed=FIXED, moving=FIXED)
    (folder / "afni.1D").write_text("# AFNI\n1 0 0 4 0 1 0 5 0 0 1 6\n")
    return {**{name: kind for name, (kind, _) in names.items()}, "afni.1D": "afni-affine"}


def one_slice(path):
    read_image(path, count_slices(path) - 1)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """name -> (whole file, how it is damaged, its reader)."""
    folder = tmp_path_factory.mktemp("seeds")
    picture = (np.arange(120).reshape(12, 10) % 251).astype(np.float32)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(picture, affine), folder / "plane.nii")
    nib.save(nib.Nifti1Image(picture.astype(np.int16), affine), folder / "plane.nii.gz")
    nib.save(nib.Nifti2Image(np.stack([picture] * 3, -1), affine), folder / "volume.nii")
    for name in ("pair.img", "damaged-pair.img"):
        nib.save(nib.Nifti1Pair(picture, affine), folder / name)
    Pillow.fromarray(picture.astype(np.uint8)).save(folder / "grey.png")
    Pillow.fromarray(picture.astype(np.uint16) * 200).save(folder / "deep.png")
    Pillow.fromarray(picture.astype(np.uint8)).convert("P").save(folder / "palette.png")
    Pillow.fromarray(picture.astype(np.uint8)).save(folder / "grey.tif")
    Pillow.fromarray(picture.astype(np.uint8)).save(folder / "grey.jpg")
    itk = sitk.GetImageFromArray(np.stack([picture] * 3).astype(np.int16))
    for name in ("volume.mha", "volume.nrrd", "plane.dcm"):
        sitk.WriteImage(itk[:, :, :1] if name == "plane.dcm" else itk, folder / name)
    vectors = sitk.GetImageFromArray(np.ones((3, 4, 5, 3), np.float32), isVector=True)
    sitk.WriteImage(vectors, folder / "field.mha")
    np.savez(folder / "one.npz", picture)
    np.savez_compressed(folder / "stack.npz", np.stack([picture] * 3))
    for suffix in (".nii", ".nii.gz"):
        grid = Image(torch.zeros(1, 1, 12, 10), affine)
        write_displacement(folder / f"displacement{suffix}", torch.ones(1, 2, 12, 10), grid)
    (folder / "points.csv").write_text("i,j\n1,2\n3.5,4\n")
    (folder / "ants.csv").write_text("x,y,z,t,label\n1,2,3.5,0,a\n-4,5,6,0,b\n")
    fcsv = "# CoordinateSystem = LPS\n# columns = id,x,y,z,ow\n1,2,3,4,5\n2,-3,4,5.5,6\n"
    (folder / "slicer.fcsv").write_text(fcsv)
    points = [{"id": "1", "position": [1.5, -2, 3]}, {"id": "2", "position": [4, 5, 6]}]
    markups = {"coordinateSystem": "RAS", "coordinateUnits": "mm", "controlPoints": points}
    (folder / "slicer.mrk.json").write_text(json.dumps({"markups": [markups]}))
    (folder / "metrics.json").write_text(json.dumps({"before": {"ncc": 0.5}, "seconds": 1.5}))
    rows = "plane.nii,plane.nii.gz,p1,0\nplane.nii.gz,plane.nii,p2,1\n"
    (folder / "pairs.csv").write_text("moving,fixed,group,slice\n" + rows)
    table = '[[pair]]\nmoving = "plane.nii"\nfixed = "grey.png"\ngroup = "a"\nslice = 3\n'
    (folder / "pairs.toml").write_text(table + '[[pair]]\nmoving = "a.nii"\nfixed = "b.nii"\n')
    entry = '{"moving_image": "a.nii", "fixed_image": "b.nii", "fold": 0}'
    (folder / "list.json").write_text(f'{{"training": [{entry}], "validation": []}}')
    (folder / "config.toml").write_text('[training]\nsteps = 3\n[model]\nname = "lunet"\n')
    network = build_model("lunet", widths=(2, 4))
    config = Config.from_dict({"model": {"name": "lunet", "widths": [2, 4]}}).to_dict()
    contents = {"config": config, "weights": network.state_dict(), "step": 3}
    write_checkpoint(folder / "last.pt", contents)

    def header(data, rng):
        return in_header(data, rng, 352)

    readers = {
        "plane.nii": (header, any_image),
        "plane.nii.gz": (in_gzip, any_image),
        "volume.nii": (header, one_slice),
        "pair.hdr": (mutated, any_image),
        "grey.png": (in_png, any_image),
        "deep.png": (in_png, any_image),
        "palette.png": (in_png, any_image),
        "grey.tif": (header, any_image),
        "grey.jpg": (mutated, any_image),
        "volume.mha": (header, one_slice),
        "volume.nrrd": (header, any_image),
        "plane.dcm": (mutated, any_image),
        "one.npz": (in_zip, any_image),
        "stack.npz": (in_zip, one_slice),
        "displacement.nii": (header, read_displacement),
        "displacement.nii.gz": (in_gzip, read_displacement),
        "field.mha": (header, transform_as("itk-field")),
        "points.csv": (mutated, read_points),
        "ants.csv": (mutated, read_point_file),
        "slicer.fcsv": (mutated, read_point_file),
        "slicer.mrk.json": (mutated, read_point_file),
        "metrics.json": (mutated, read_json),
        "pairs.csv": (mutated, read_manifest),
        "pairs.toml": (mutated, read_manifest),
        "list.json": (mutated, read_manifest),
        "config.toml": (mutated, load_config),
        "last.pt": (in_zip, load_network),
    }
    damages = {".nii": header, ".npz": in_zip}
    for name, kind in transforms_in(folder).items():
        readers[name] = damages.get(name[name.rindex(".") :], mutated), transform_as(kind)
    return folder, readers


class Hanging(BaseException):
    pass


def hang(number, frame):
    raise Hanging


def peak():
    """Kilobytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_damaged_files_are_read_or_refused_in_words(seeds):
    folder, readers = seeds
    before = signal.signal(signal.SIGALRM, hang)
    wrong = []
    try:
        for case in range(FIRST, FIRST + CASES):
            name = list(readers)[case % len(readers)]
            damage, read = readers[name]
            content = damage((folder / name).read_bytes(), random.Random(case))
            file = folder / f"damaged-{name}"
            file.write_bytes(content)
            before_it = peak()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                read(file)
            except (ValueError, TypeError, OSError) as error:
                if "\n" in str(error) or not str(error):
                    wrong.append((case, name, "not one line", str(error)[:200]))
            except (Exception, Hanging) as error:
                wrong.append((case, name, type(error).__name__, str(error)[:200]))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if peak() > before_it + KILOBYTES:
                wrong.append((case, name, "takes memory", f"{peak() - before_it} kB"))
            file.unlink()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert wrong == [], "\n".join(map(str, wrong))


def test_the_whole_files_are_read(seeds):
    folder, readers = seeds
    for name, (_, reader) in readers.items():
        if name not in ("pairs.toml", "list.json"):  # name files that are not there
            reader(folder / name)
