"""The table of a network that knows no contrast, and the contrast that it is tried on."""

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench" / "compare"))
across = pytest.importorskip("across")
contrasts = pytest.importorskip("contrasts")
labelled = pytest.importorskip("labelled")


def test_grey_is_brightest_in_the_simulated_contrast(tmp_path):
    values = np.array([0, 100, 200], np.uint8).reshape(3, 1, 1)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    moving = tmp_path / "moving.nii.gz"
    nib.save(nib.Nifti1Image(values, affine), moving)
    fixed = tmp_path / "fixed.nii.gz"
    pair = labelled.Pair("brain2mm", moving, fixed, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    (tmp_path / "out").mkdir()
    found = contrasts.simulated(pair, tmp_path / "out")
    image = nib.load(found.moving)
    assert np.asarray(image.dataobj).ravel().tolist() == [0, 255, 0]
    assert (image.affine == affine).all()
    assert (found.name, found.fixed, found.moving_label) == (pair.name, fixed, pair.moving_label)
    assert np.asarray(nib.load(moving).dataobj).ravel().tolist() == [0, 100, 200]


def test_the_table_has_means_the_worst_and_the_pairs_that_fold(tmp_path):
    def row(group, method, dice, folded, **more):
        found = {"dice": dice, "folded_certificate_percent": folded, **more}
        return {"set": group, "pair": "a", "method": method, **found}

    rows = [
        row("prostate", "before", 0.5, 0.0, tre=4.0),
        row("prostate", "network", 0.75, 0.0, tre=2.0, search_s=1.0),
        row("heads", "before", 0.4, 0.0),
        row("prostate", "network", 0.25, 0.5, tre=3.0, search_s=3.0),
    ]
    out = tmp_path / "out.jsonl"
    out.write_text("".join(json.dumps(one) + "\n" for one in rows))
    title, rule, *lines = across.table(out).splitlines()
    assert title.count("|") == rule.count("|") == 11
    assert lines == [
        "| prostate | 1 | before | 0.500 | 0.500 | 4.00 |  | 0 | 0 |  |",
        "| prostate | 2 | network | 0.500 | 0.250 | 2.50 |  | 0.25 | 1 | 2.0 |",
        "| heads | 1 | before | 0.400 | 0.400 |  |  | 0 | 0 |  |",
    ]


def test_nothing_has_an_affine_start(tmp_path, monkeypatch):
    """What the cards say of their figures."""
    seen, pair = [], labelled.Pair("heads", *[tmp_path / name for name in "abcd"])
    monkeypatch.setattr(across, "ours", lambda _, words, __: (seen.append(words), (None, {}))[1])
    monkeypatch.setattr(across, "cases", lambda *_: [("heads", pair)])
    monkeypatch.setattr(across, "no_displacement", lambda _: None)
    monkeypatch.setattr(across, "fit", lambda *_: {})
    monkeypatch.setattr(across, "certified", lambda _: {})
    options = {"out": tmp_path / "out.jsonl", "methods": (), "checkpoint": "lunet-any"}
    across.run(argparse.Namespace(**options))
    assert len(seen) == 5 and all(words[:2] == ("--affine", "none") for words in seen)
