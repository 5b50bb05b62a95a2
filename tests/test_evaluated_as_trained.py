"""A network is evaluated on images that were moved as in its training, where nothing is said."""

import json

import pytest
from test_cohort import blob, save

from diffreg.cli.main import main
from diffreg.models import build_model
from diffreg.training.checkpoint import affine_of, write_checkpoint
from diffreg.training.config import Config
from diffreg.training.export import export_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = ["heart/train.csv"]


def checkpoint(path, **data):
    config = Config.from_dict({"data": data, "model": {"widths": [2, 4]}})
    weights = build_model("lunet", widths=(2, 4)).state_dict()
    write_checkpoint(path, {"config": config.to_dict(), "weights": weights})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pair of one grid, which auto does not move."""
    monkeypatch.chdir(tmp_path)
    for name, at in (("moving", 0.53), ("fixed", 0.5)):
        save(f"{name}.nii.gz", blob((24, 20), at))
    (tmp_path / "pairs.csv").write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n")
    return tmp_path


@pytest.mark.parametrize(
    ("data", "words", "kind"),
    [
        ({"images": IMAGES, "affine": "rigid"}, (), "rigid"),
        ({"images": IMAGES, "affine": "rigid"}, ("--affine", "none"), None),
        ({"images": IMAGES}, ("--affine", "affine"), "affine"),
        ({"images": IMAGES}, (), None),
    ],
)
def test_the_start_is_the_runs_own(folder, capsys, data, words, kind):
    checkpoint("net.pt", **data)
    assert main(["evaluate", "pairs.csv", "-o", "out", "--checkpoint", "net.pt", *words]) == 0
    (path,) = folder.glob("out/*/metrics.json")
    assert json.loads(path.read_text()).get("affine", {}).get("kind") == kind
    said = f"affine start: {kind or 'none'}, as in training (data.affine)"
    assert (said in capsys.readouterr().err) == (not words)


@pytest.mark.parametrize("data", [{"images": IMAGES, "affine": "rigid"}, {"images": IMAGES}, {}])
def test_an_exported_network_knows_it_too(folder, data):
    checkpoint("run.pt", **data)
    export_checkpoint("run.pt", "net.pt")
    known = data.get("affine", "none") if data else None
    assert affine_of("run.pt") == affine_of("net.pt") == known


def test_what_is_not_known_is_auto(folder, capsys):
    checkpoint("net.pt")
    assert main(["evaluate", "pairs.csv", "-o", "out", "--checkpoint", "net.pt"]) == 0
    assert "as in training" not in capsys.readouterr().err


def test_help_says_so(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "as its run moved them, data.affine" in " ".join(capsys.readouterr().out.split())
