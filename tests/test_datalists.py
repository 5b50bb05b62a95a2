"""MONAI datalists and BIDS folders as manifests: what they mean, mistakes in words, a run."""

import json

import nibabel as nib
import numpy as np
import pytest
from runs import SHAPE, config_of, head

from diffreg.cli.main import main
from diffreg.data.manifest import read_manifest
from diffreg.data.pairs import find_pairs
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.config import Config
from diffreg.training.printed import printed

pytestmark = pytest.mark.usefixtures("one_thread")
T1W = ["sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-01/ses-2/anat/sub-01_ses-2_T1w"]
T1W += [f"sub-0{k}/anat/sub-0{k}_acq-fast_T1w" for k in (2, 3)]
T2W = ["sub-01/ses-1/anat/sub-01_ses-1_T2w", "sub-02/anat/sub-02_T2w"]


def save(path, at=11.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(head(at), np.diag([2.0, 2.0, 4.0, 1.0])), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for k, name in enumerate("abcd"):
        save(tmp_path / "imagesTr" / f"{name}.nii.gz", 10 + k)
        labels = np.zeros(SHAPE, np.uint8)
        labels[4 + k : 12, 5:15] = 1
        nib.save(
            nib.Nifti1Image(labels, np.diag([2.0, 2.0, 4.0, 1.0])),
            tmp_path / "imagesTr" / f"{name}_seg.nii.gz",
        )
    return tmp_path


@pytest.fixture
def bids(folder):
    for k, name in enumerate(T1W + T2W):
        save(folder / "bids" / f"{name}.nii.gz", 9 + k / 2)
    (folder / "bids" / "dataset_description.json").write_text("{}")
    (folder / "bids" / "sub-01/ses-1/anat/sub-01_ses-1_T1w.json").write_text("{}")
    (folder / "bids" / "sub-02/anat/notes.nii.gz").write_bytes(b"no name of BIDS")
    return folder / "bids"


def datalist(folder, **lists):
    (folder / "list.json").write_text(json.dumps({"name": "hearts", "numTraining": 3, **lists}))
    return folder / "list.json"


def file(name):
    return f"./imagesTr/{name}.nii.gz"


def names(path):
    return [pair.name for pair in read_manifest(path)]


def test_a_datalist_of_images_with_labels_and_one_of_names(folder):
    entries = [{"image": file(k), "label": file(f"{k}_seg"), "image2": 3} for k in "abc"]
    path = datalist(folder, training=entries, test=[file("a"), file("d")])
    found = read_manifest(path)
    assert len(found) == 6 and found.pairs[0].name == "a.nii.gz to b.nii.gz"
    assert found.pairs[0].fixed_label.name == "b_seg.nii.gz"
    assert found.pairs[0].row == f"{path}:training, entry 1 with entry 2"
    assert names(f"{path}:test") == ["a.nii.gz to d.nii.gz", "d.nii.gz to a.nii.gz"]
    assert len(find_pairs([f"{path}:training"])) == 6


@pytest.mark.parametrize("end", ["", "_image"])
def test_a_datalist_of_pairs(end, folder):
    pair = {f"moving{end}": file("a"), f"fixed{end}": file("b"), "group": "p", "age": 40}
    pair |= {"moving_label": file("a_seg"), "fixed_label": file("b_seg")}
    (found,) = read_manifest(datalist(folder, training=[pair]))
    assert (found.name, found.group) == ("a.nii.gz to b.nii.gz", "p")
    assert found.moving_label.name == "a_seg.nii.gz"


@pytest.mark.parametrize(("content", "said"), [
    ("{", "list.json is not JSON"),
    ("[1]", "list.json has no list 'training'; it has no list"),
    ('{"validation": [], "test": []}', "has no list 'training'; it has validation, test"),
    ('{"training": []}', "lists no pair"),
    ('{"training": [3]}', "list.json:training, entry 1: must be a path or an object, got int"),
    ('{"training": [{"image": ["a", "b"]}]}', "entry 1: image must be a text on one line, got"),
    ('{"training": [{"label": "a"}]}', "entry 1: it must have image, or moving and fixed; it has"),
    ('{"training": [{"moving": "a", "fixde": "a"}]}', "no key 'fixde'; the nearest is fixed"),
    ('{"training": [{"moving": "a", "moving_image": "a"}]}', "entry 1: moving is there twice"),
    ('{"training": ["x.nii", "y.nii"]}', "entry 1: image {}/x.nii does not exist"),
    ('{"training": [{"image": "a", "moving": "b"}]}', "there is no column 'moving'"),
])  # fmt: skip
def test_a_mistake_in_a_datalist_is_one_line(content, said, folder):
    (folder / "list.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_manifest(folder / "list.json")
    assert said.replace("{}", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_kind_of_a_bids_folder_is_every_ordered_pair(bids):
    manifest = read_manifest(f"{bids}:T1w")
    assert len(manifest) == 4 * 3 and list(manifest.groups) == [""]
    assert manifest.pairs[0].name == "sub-01_ses-1_T1w.nii.gz to sub-01_ses-2_T1w.nii.gz"
    assert names(f"{bids}:acq-fast_T1w") == [
        f"sub-0{a}_acq-fast_T1w.nii.gz to sub-0{b}_acq-fast_T1w.nii.gz" for a, b in ((2, 3), (3, 2))
    ]


def test_two_kinds_are_moving_and_fixed_of_one_subject(bids):
    manifest = read_manifest(f"{bids}:T2w,T1w")
    assert {group: [p.name for p in pairs] for group, pairs in manifest.groups.items()} == {
        "sub-01": [
            "sub-01_ses-1_T2w.nii.gz to sub-01_ses-1_T1w.nii.gz",
            "sub-01_ses-1_T2w.nii.gz to sub-01_ses-2_T1w.nii.gz",
        ],
        "sub-02": ["sub-02_T2w.nii.gz to sub-02_acq-fast_T1w.nii.gz"],
    }
    assert names(f"{bids}:ses-1_T2w,ses-1_T1w") == [
        "sub-01_ses-1_T2w.nii.gz to sub-01_ses-1_T1w.nii.gz"
    ]
    assert names(f"{bids}:T1w,T1w") == [
        f"sub-01_ses-{a}_T1w.nii.gz to sub-01_ses-{b}_T1w.nii.gz" for a, b in ((1, 2), (2, 1))
    ]


@pytest.mark.parametrize(("query", "said"), [
    ("", "is a BIDS folder: say which images, as {}:T1w (every ordered pair) or {}:T2w,T1w"),
    (":T1w,T2w,T1w", "is a BIDS folder: say which images"),
    (":FLAIR", "{}:FLAIR: no image is 'FLAIR'; the suffixes are T1w, T2w"),
    (":sub-09_T1w", "no image is 'sub-09_T1w'"),
    (":ses-2_T1w", "{}:ses-2_T1w: there are no two images to make a pair"),
    (":acq-fast_T1w,acq-fast_T1w", "there are no two images of one subject to make a pair"),
])  # fmt: skip
def test_a_query_that_finds_no_pair_is_refused(query, said, bids):
    for read in (read_manifest, lambda path: find_pairs([path])):
        with pytest.raises(ValueError) as caught:
            read(f"{bids}{query}")
        assert said.replace("{}", str(bids)) in str(caught.value)


def test_a_folder_with_images_beside_its_subjects_is_a_plain_folder(bids):
    save(bids / "x.nii.gz")
    save(bids / "y.nii.gz")
    assert names(bids) == ["x.nii.gz to y.nii.gz", "y.nii.gz to x.nii.gz"]


def settings(folder, **data):
    sections = config_of("unused", folder / "run", steps=2, validate_every=2).to_dict()
    sections["data"] = data
    (folder / "train.toml").write_text(printed(Config.from_dict(sections)))
    return str(folder / "train.toml")


def test_a_datalist_trains_registers_and_is_evaluated(folder, capsys):
    entries = [{"image": file(k), "label": file(f"{k}_seg")} for k in "abc"]
    held_out = {"moving_image": file("a"), "fixed_image": file("d")}
    held_out |= {"moving_label": file("a_seg"), "fixed_label": file("d_seg")}
    path = datalist(folder, training=entries, validation=[held_out])
    data = {"images": ["list.json"], "validation": ["list.json:validation"]}
    assert main(["train", settings(folder, **data)]) == 0
    assert read_checkpoint(folder / "run" / "last.pt")["step"] == 2
    assert (folder / "run" / "validation.csv").read_text().count("\n") == 2
    method = ["--checkpoint", str(folder / "run" / "last.pt")]
    assert main(["evaluate", f"{path}:validation", "-o", "out", *method]) == 0
    assert "out/report.html: 1 pair, network last.pt" in capsys.readouterr().out
    assert len(list((folder / "out").glob("*/metrics.json"))) == 1


def test_a_bids_folder_trains_and_registers(bids, folder, capsys):
    data = {"images": ["bids:T2w,T1w"], "validation_groups": ["sub-02"]}
    assert main(["train", settings(folder, **data)]) == 0
    names = read_checkpoint(folder / "run" / "last.pt")["pairs"]
    assert len(names) == 2 and all(name.startswith("sub-01") for name in names)
    method = ["--checkpoint", str(folder / "run" / "last.pt")]
    assert main(["register", "bids:T1w,T1w", "-o", "out", *method]) == 0
    assert len(list((folder / "out").glob("*/metrics.json"))) == 2
    assert "bids:T1w,T1w: every ordered pair of 2 images: 2 pairs" in capsys.readouterr().err


def test_a_bids_folder_trains_and_is_evaluated(bids, folder, capsys):
    assert main(["train", settings(folder, images=[f"{bids}:T1w"])]) == 0
    method = ["--checkpoint", str(folder / "run" / "last.pt")]
    assert main(["evaluate", f"{bids}:T2w,T1w", "-o", "out", *method]) == 0
    assert "3 pairs, network last.pt" in capsys.readouterr().out
    assert len(list((folder / "out").glob("*/metrics.json"))) == 3
