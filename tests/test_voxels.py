"""A network is warned of where it is given voxels quite unlike those that it was trained on."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from runs import Pairs

from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.voxels import Voxels
from diffreg.registration import register
from diffreg.training import load_network, load_pretrained
from diffreg.training.checkpoint import fresh_network, read_checkpoint, write_checkpoint
from diffreg.training.config import Config
from diffreg.training.export import export_checkpoint
from diffreg.training.own_pairs import OwnPairs
from diffreg.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

SAID = "The network was trained on voxels of "
CUBES = Voxels((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0))


def blob(at, shape=(20, 18, 16)):
    squares = sum((x - n / 2 - at) ** 2 for x, n in zip(np.indices(shape), shape, strict=True))
    return 100 * np.exp(-squares / 30).astype(np.float32)


def still(moving, fixed):
    return torch.zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:])


def warned(spacing, trained_on=CUBES, **options):
    """The warnings about voxels of a network that leaves all where it is."""
    shape = (20, 18, 16)[: len(spacing)]
    affine = np.diag([*spacing, *[1] * (4 - len(spacing))])
    images = [Image(torch.from_numpy(blob(at, shape))[None, None], affine) for at in (0.3, 0)]
    options = {"network": still, "affine": "none", "trained_on": trained_on, **options}
    found = register(*images, **options).warnings
    return [words for words in found if SAID in words]


def test_shapes_and_lengths_are_compared():
    assert CUBES.stretched((1.37, 1.37, 10)) == pytest.approx(7.3, abs=0.01)
    # the first axis is half as long as in training, beside the third one
    assert Voxels((2.0, 2.0, 1.0)).stretched((1.0, 2.0, 1.0)) == 2
    found = [CUBES.finer((n,) * 3) for n in (0.25, 1, 1.5, 2, 5)]
    assert found == pytest.approx([4, 1, 1, 1, 1])
    unknown = Voxels()
    assert (unknown.stretched((1.0, 9.0)), unknown.finer((0.1, 0.1))) == (1, 1)
    assert CUBES.stretched((1.0, 9.0)) == CUBES.finer((0.1, 0.1)) == 1  # of other dimensions


@pytest.mark.parametrize(
    ("spacing", "named"),
    [
        ((1.0, 1.0, 1.0), False),
        ((2.0, 2.0, 2.0), False),
        ((0.8, 0.8, 0.8), False),
        ((3.0, 3.0, 3.0), False),
        ((1.0, 1.0, 2.0), False),
        ((6.0, 6.0, 6.0), False),
        ((1.5, 1.5, 9.0), True),
        ((9.0, 1.5, 1.5), True),
        ((0.3, 0.3, 0.3), True),
    ],
)
def test_voxels_quite_unlike_are_named(spacing, named):
    assert bool(warned(spacing)) == named


def test_the_sentence_says_both():
    (words,) = warned((1.37, 1.37, 10.0))
    assert words.startswith(
        f"{SAID}1 x 1 x 1 to 2 x 2 x 2 mm, and on these, of 1.37 x 1.37 x 10 mm,"
    )
    (words,) = warned((1.0, 3.0), Voxels((1.0, 1.0)))
    assert words.startswith(f"{SAID}1 x 1 (proportions), and on these, of 1 x 3 mm,")
    (words,) = warned((0.5, 0.5), Voxels((1.0, 1.0), (1.37, 1.37), (1.37, 1.37)))
    assert f"{SAID}1.37 x 1.37 mm," in words


def test_what_is_not_known_is_not_compared():
    assert warned((1.5, 1.5, 9.0), None) == warned((1.5, 1.5, 9.0), Voxels()) == []
    arrays = [blob(at) for at in (0.3, 0)]  # nobody said where they lie
    five = Voxels((1.0, 1.0, 5.0), (1.0, 1.0, 5.0), (1.0, 1.0, 5.0))
    result = register(*arrays, network=still, affine="none", trained_on=five)
    assert not any(SAID in words for words in result.warnings)


@pytest.mark.parametrize(
    ("name", "known", "unlike"),
    [
        # What the cards have figures of.
        ("lunet-any", [(2.0,) * 3, (1.0,) * 3, (0.8,) * 3, (3.0,) * 3], (1.37, 1.37, 10.0)),
        ("lunet-any-2d", [(2.0,) * 2, (1.0,) * 2, (1.37,) * 2], (0.4, 0.4)),
        ("lunet-cardiac-mr", [(1.367, 1.367), (1.289, 1.289)], (0.5, 0.5)),
        ("lunet-mr-ct", [(1.37, 1.37)], (0.5, 0.5)),
    ],
)
def test_networks_that_ship_know_their_voxels(name, known, unlike):
    voxels = load_pretrained(name)["trained_on"]
    for spacing in known:
        assert warned(spacing, voxels) == []
    assert warned(unlike, voxels)


def save(path, at, spacing, shape=(20, 18, 16)):
    nib.save(nib.Nifti1Image(blob(at, shape), np.diag([*spacing, 1])), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pair of thick slices, a pair of cubes, a manifest of both, a checkpoint of cubes."""
    monkeypatch.chdir(tmp_path)
    for name, spacing in (("thick", (1.5, 1.5, 9)), ("cubes", (1.5, 1.5, 1.5))):
        for side, at in (("moving", 0.3), ("fixed", 0.0)):
            save(f"{name}_{side}.nii.gz", at, spacing)
    lines = [f"{name}_moving.nii.gz,{name}_fixed.nii.gz" for name in ("thick", "cubes")]
    (tmp_path / "pairs.csv").write_text("\n".join(["moving,fixed", *lines]))
    model = {"name": "lunet", "dimensions": 3, "widths": [2, 4]}
    config = Config.from_dict({"model": model})
    weights = fresh_network(config).state_dict()
    known = {"spacing": [1.0] * 3, "spacing_mm": [[1.0] * 3, [2.0] * 3]}
    write_checkpoint("net.pt", {"config": config.to_dict(), "weights": weights, **known})
    return tmp_path


def run(*words):
    return main([*words, "-o", "out", "--checkpoint", "net.pt", "--affine", "none"])


@pytest.mark.parametrize("refine", ["0", "1"])
def test_register_says_it(folder, capsys, refine):
    assert run("register", "thick_moving.nii.gz", "thick_fixed.nii.gz", "--refine", refine) == 0
    said = capsys.readouterr()
    assert f"diffreg: warning: {SAID}" in said.err and "doubtful" in said.out
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    (words,) = [words for words in metrics["warnings"] if SAID in words]
    assert ("refinement" in words) == (refine == "1")
    assert SAID in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize("command", ["register", "evaluate"])
def test_a_manifest_says_it_of_the_pair(folder, capsys, command):
    assert run(command, "pairs.csv") == 0
    assert "pairs may not fit" in capsys.readouterr().err
    found = [
        json.loads(path.read_text())["warnings"] for path in sorted(folder.glob("out/*/*.json"))
    ]
    assert [any(SAID in words for words in warnings) for warnings in found] == [True, False]
    if command == "evaluate":
        evaluation = json.loads((folder / "out" / "evaluation.json").read_text())
        named = [entry["pair"] for entry in evaluation["warnings"] if SAID in entry["sentence"]]
        assert len(named) == 1 and "thick" in named[0]


# what checkpoints keep


class Own(torch.utils.data.Dataset):
    spacing = (1.0, 2.0)
    spacing_mm = ((1.5, 3.0), (1.0, 2.0))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict.fromkeys(
            ("moving", "fixed"), torch.from_numpy(blob(index, (16, 16)))[None] / 100
        )


def config_of(out, **sections):
    training = {"out": str(out), "steps": 1, "batch_size": 2, "threads": 1, "tensorboard": False}
    return Config.from_dict({"model": {"widths": [2, 4]}, "training": training, **sections})


def test_a_run_keeps_the_shortest_and_the_longest(tmp_path):
    (tmp_path / "images").mkdir()
    for k, length in enumerate((2.0, 1.0, 1.5)):
        save(tmp_path / "images" / f"{k}.nii", k / 5, (length, length, 5.0), (16, 16, 1))
    config = config_of(tmp_path / "run", data={"images": [str(tmp_path / "images")]})
    Trainer(config, progress=False).train()
    last = tmp_path / "run" / "last.pt"
    kept = read_checkpoint(last)
    assert (kept["spacing"], kept["spacing_mm"]) == ([1.0, 1.0], [[1.0, 1.0], [2.0, 2.0]])
    export_checkpoint(last, tmp_path / "net.pt")
    expected = Voxels((1.0, 1.0), (1.0, 1.0), (2.0, 2.0))
    for path in (last, tmp_path / "net.pt"):
        assert load_network(path)["trained_on"] == expected


@pytest.mark.parametrize("lengths", [(np.nan, 1.0), (0, 0), 1.5, {"x": 1}, [(1, 1), (1,)], "mm"])
def test_lengths_of_ones_own_that_are_none_stop_before_the_training(lengths):
    dataset = Pairs()
    dataset.spacing_mm = lengths
    with pytest.raises(ValueError, match="a dataset's spacing_mm must be the lengths of a voxel"):
        OwnPairs(dataset, 0, 2)


def test_what_is_no_voxels_is_refused_at_once():
    with pytest.raises(TypeError, match="trained_on must be"):
        register(torch.rand(9, 9), torch.rand(9, 9), trained_on=(1.0, 1.0))


def test_a_dataset_of_ones_own_may_say_its_lengths(tmp_path):
    Trainer(config_of(tmp_path / "run"), Own(), progress=False).train()
    found = load_network(tmp_path / "run" / "last.pt")["trained_on"]
    assert found == Voxels((1.0, 2.0), (1.0, 2.0), (1.5, 3.0))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, Voxels()),
        ({"spacing": []}, Voxels()),
        ({"spacing": [1.0, 2.0]}, Voxels((1.0, 2.0))),
        ({"spacing": [], "spacing_mm": []}, Voxels()),
    ],
)
def test_checkpoints_of_before_load(tmp_path, known, expected):
    config = config_of(tmp_path / "run")
    weights = fresh_network(config).state_dict()
    path = tmp_path / "old.pt"
    write_checkpoint(path, {"config": config.to_dict(), "weights": weights, **known})
    assert load_network(path)["trained_on"] == expected


@pytest.mark.parametrize(
    "known",
    [{"spacing": [0.0, 1.0]}, {"spacing": "thin"}, {"spacing_mm": [1.0]}, {"spacing": [[1.0]]},
     {"spacing": [float("nan"), 1.0]}, {"spacing_mm": 3}],
)  # fmt: skip
def test_lengths_that_are_none_are_refused(tmp_path, known):
    config = config_of(tmp_path / "run")
    weights = fresh_network(config).state_dict()
    path = tmp_path / "damaged.pt"
    write_checkpoint(path, {"config": config.to_dict(), "weights": weights, **known})
    with pytest.raises(ValueError, match=r"damaged\.pt: spacing and spacing_mm must be lengths"):
        load_network(path)
