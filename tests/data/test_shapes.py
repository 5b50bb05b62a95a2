"""Pairs of random shapes: the known displacement brings one onto the other; a sample is a function
of seed and number; contrasts differ."""

import importlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.data.shapes import Shapes
from diffreg.fields import fold_certificate
from diffreg.ops import warp
from diffreg.system.files import FileWarning
from diffreg.training import Trainer
from diffreg.training.config import Config, load_config

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = [(40, 36), (24, 22, 26)]


@pytest.mark.parametrize("size", SIZES)
def test_the_displacement_is_the_truth(size):
    data = Shapes(size, labels=5, scale=8.0, amplitude=2.0, length=6)
    agree, before = [], []
    for sample in (data[k] for k in range(6)):
        moving, fixed = sample["moving_label"][None], sample["fixed_label"][None]
        assert moving.dtype == torch.int64 and sample["moving"].dtype == torch.float32
        u = sample["displacement"][None]
        assert fold_certificate(u).folded_cells == 0
        inner = (slice(None), slice(None), *[slice(4, -4)] * len(size))
        agree.append((warp(moving, u, "nearest") == fixed)[inner].double().mean().item())
        before.append((moving == fixed)[inner].double().mean().item())
    assert np.mean(agree) > 0.96 and min(agree) > 0.9 and np.mean(before) < np.mean(agree) - 0.05


def test_a_sample_is_a_function_of_seed_and_number():
    one, again, other = Shapes(SIZES[0]), Shapes(SIZES[0]), Shapes(SIZES[0], seed=1)
    first = one[7]
    _ = again[2]
    assert all(torch.equal(first[name], again[7][name]) for name in first)
    assert not torch.equal(first["moving"], other[7]["moving"])
    assert not torch.equal(first["moving"], one[8]["moving"])


def test_images_fill_the_range_and_contrasts_differ():
    data = Shapes((32, 32), labels=6, scale=6.0, amplitude=0.0)
    rising = 0
    for k in range(12):
        sample = data[k]
        assert torch.equal(sample["moving_label"], sample["fixed_label"])
        for name in ("moving", "fixed"):
            image = sample[name]
            assert image.min() == 0 and image.max() == 1 and image.std() > 0.05
        both = torch.stack([sample["moving"].flatten(), sample["fixed"].flatten()])
        rising += torch.corrcoef(both)[0, 1] > 0.5
    assert 0 < rising < 9


def test_pairs_of_one_contrast_where_they_are_asked_for():
    """Smooth images of one contrast are alike, apart from noise, bias and blur."""
    share = {}
    for alike in (0.0, 0.5, 1.0):
        data = Shapes((32, 32), labels=6, scale=6.0, amplitude=0.0, alike=alike)
        both = [
            torch.stack([s["moving"].flatten(), s["fixed"].flatten()])
            for s in map(data.__getitem__, range(40))
        ]
        share[alike] = sum(torch.corrcoef(pair)[0, 1].item() > 0.5 for pair in both) / 40
    assert share[0.0] < 0.4 < share[0.5] < 0.9 < share[1.0]


def test_label_maps_that_are_given_are_bent():
    given = np.zeros((20, 20, 20), np.int16)
    given[5:15, 6:14, 4:12] = 7
    given[7:11, 8:12, 6:9] = 40
    sample = Shapes((20, 20, 20), maps=[given], scale=5.0, amplitude=1.0)[0]
    assert sample["moving_label"].unique().tolist() == [0, 1, 2]
    inside = sample["fixed_label"][0] > 0
    assert 0.5 < inside.sum().item() / (given > 0).sum() < 2
    known = sample["displacement"].isfinite()
    assert torch.equal(known, inside.expand(3, -1, -1, -1))  # the background shows nothing


def test_label_maps_of_files_are_drawn_in_windows(tmp_path):
    """A folder of them, as [data] settings can say; larger ones show another place each time."""
    given = np.zeros((30, 20, 20), np.int16)
    given[:15, 6:14, 4:12], given[15:] = 7, 9
    for name in ("a_seg.nii.gz", "b_seg.nii.gz"):
        nib.save(nib.Nifti1Image(given, np.eye(4)), tmp_path / name)
    noise = np.random.default_rng(0).integers(0, 900, given.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "a.nii.gz")  # an image is no map
    (tmp_path / ".diffreg").mkdir()
    files = [tmp_path / "a_seg.nii.gz", str(tmp_path / "b_seg.nii.gz")]
    sets = [
        Shapes((16, 20, 12), maps=maps, scale=5.0, amplitude=0.5)
        for maps in (str(tmp_path), files, [given, given])
    ]
    shares = set()
    for k in range(6):
        each = [data[k] for data in sets]
        for one in each:
            assert all(torch.equal(one[n].nan_to_num(9), each[0][n].nan_to_num(9)) for n in one)
        assert each[0]["fixed"].shape == (1, 16, 20, 12)
        shares.add((each[0]["fixed_label"] == 2).float().mean().item())
    assert max(shares) - min(shares) > 0.2
    with pytest.warns(FileWarning, match="may be an image and no labels"):
        Shapes((16, 20, 12), maps=[tmp_path / "a.nii.gz"])
    config = Config.from_dict(
        {
            "data": {
                "name": "diffreg.data.shapes:Shapes",
                "settings": {"size": [16, 20, 12], "maps": str(tmp_path), "scale": 5.0},
            },
            "model": {"dimensions": 3, "widths": [4, 4]},
            "objective": {"labels": 1.0},
            "training": {"out": str(tmp_path / "run"), "steps": 1, "batch_size": 1, "threads": 1},
        }
    )
    assert Trainer(config, progress=False).train_step().total > 0


def test_a_window_shows_something():
    given = np.zeros((64, 64), np.uint8)
    given[30:34, 30:34] = 1
    data = Shapes((24, 24), maps=[given], scale=5.0, amplitude=0.1)
    shown = [data[k]["fixed_label"].any() for k in range(20)]
    assert sum(shown) >= 18  # of windows that are not looked at, one in four


def test_of_two_heads_each_image_shows_one_and_no_displacement_is_known():
    two = np.zeros((2, 20, 20, 20), int)
    two[0, 5:15, 6:14, 4:12], two[1, 8:10, 8:10, 8:10] = 1, 1
    data = Shapes((20, 20, 20), maps=[two], images=[two.astype(float)], scale=5.0, amplitude=0.2)
    larger = set()
    for sample in map(data.__getitem__, range(8)):
        moving, fixed = ((sample[f"{name}_label"] == 1).sum() for name in ("moving", "fixed"))
        assert max(moving, fixed) > 10 * min(moving, fixed) > 0
        assert sample["displacement"].isnan().all()
        larger.add((moving > fixed).item())
    assert larger == {True, False}


def test_images_that_are_given_keep_their_texture_in_half_of_the_samples():
    image = np.random.default_rng(0).random((24, 24, 24)).astype(np.float32)
    maps = [np.ones(image.shape, int)]
    data = Shapes(image.shape, maps=maps, images=[image], amplitude=0.0, alike=1.0, length=40)
    found = []
    for sample in map(data.__getitem__, range(40)):
        pair = torch.stack([sample["moving"].flatten(), sample["fixed"].flatten()])
        found.append(torch.corrcoef(pair)[0, 1].item() > 0.3)  # of one label there is noise alone
    assert 10 <= sum(found) <= 30


def test_warps_of_several_scales_are_as_strong_and_finer():
    of = {
        scales: torch.stack([Shapes((64, 64), scales=scales)[k]["displacement"] for k in range(30)])
        for scales in ((16.0,), (16.0, 4.0))
    }
    one, both = of.values()
    assert 0.7 < both.std() / one.std() < 1.3
    assert both.diff(dim=-1).std() > 1.5 * one.diff(dim=-1).std()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("lunet_any_*.toml")), ids=lambda f: f.stem)
def test_the_examples_settings_draw_pairs(file, tmp_path, monkeypatch):
    """As many axes as the network takes; each stage but a first begins with the end of another."""
    monkeypatch.syspath_prepend(EXAMPLES)
    head = np.ones((100, 98, 66), np.uint8)
    head[30:70, 30:70] = 2
    for name in ("a_1mm", "a_1mm_t1", "b_1mm", "b_1mm_t1"):
        nib.save(nib.Nifti1Image(head, np.eye(4)), tmp_path / f"{name}.nii.gz")
    config = load_config(file)
    drawn = importlib.import_module("contrast_free").ShapesAndTissues
    for settings in (config.data.settings, config.data.validation_settings):
        data = drawn(**settings | {"maps": str(tmp_path)})
        for sample in (data[k] for k in range(2)):
            assert sample["displacement"].shape == (config.model.dimensions, *settings["size"])
            assert sample["fixed"].isfinite().all()
    stages = [load_config(other) for other in EXAMPLES.glob("lunet_any_*.toml")]
    ends = {Path(stage.training.out) / "last.pt" for stage in stages}
    assert file.stem.endswith("1") or Path(config.training.start) in ends


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (8,)}, "size must be two or three"),
        ({"size": (8, 2)}, "at least 4"),
        ({"size": (8, 8), "labels": 1}, "labels must be at least 2"),
        ({"size": (8, 8), "maps": 5}, "maps must be label maps in a list, or a folder"),
        ({"size": (8, 8), "maps": [np.zeros((8, 8))]}, r"maps\[0\] must be whole numbers"),
        ({"size": (8, 8), "maps": [np.zeros((7, 9), int)]}, r"size \[8, 8\]"),
        ({"size": (8, 8), "maps": [np.zeros((9, 7), int)]}, r"at least size \[8, 8\]"),
        ({"size": (8, 8), "maps": [np.zeros((8, 8), int)]}, r"maps\[0\] shows no label"),
        ({"size": (8, 8), "maps": "nowhere"}, "maps must be a folder of label maps, or several"),
        ({"size": (8, 8), "maps": str(EXAMPLES)}, "there is no label map in"),
        ({"size": (8, 8), "images": [np.zeros((8, 8))]}, "images must be as many as maps"),
        (
            {"size": (8, 8), "maps": np.ones((2, 8, 8), int), "images": np.full((2, 8, 8), 255)},
            r"images\[0\] must be in \[0, 1\], got 255 to 255",
        ),
        (
            {"size": (8, 8), "maps": [np.ones((8, 8), int)], "images": [np.full((8, 8), np.nan)]},
            r"images\[0\] must be in \[0, 1\], got nan to nan",
        ),
        ({"size": (8, 8), "scales": (8.0, 0.0)}, "scales must be numbers > 0"),
    ],
)
def test_settings_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**settings)
    with pytest.raises(IndexError):
        Shapes((8, 8), length=3)[3]
