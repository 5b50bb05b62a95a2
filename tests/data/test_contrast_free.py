"""The example that lunet-any was trained with: shapes, one head and two heads, in turn."""

from pathlib import Path

import numpy as np
import pytest
import torch

nib = pytest.importorskip("nibabel")
pytest.importorskip("scipy")

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def heads(tmp_path):
    """Two heads on one grid, the second one's tissue elsewhere."""
    labels = np.ones((2, 14, 13, 22), np.uint8)
    labels[0, :7], labels[1, :, 6:] = 2, 5  # 5: a deep structure, which is grey matter in a pair
    for name, values in zip(("a", "b"), labels, strict=True):
        for end, found in (("", values), ("_t1", 40 * values)):
            nib.save(nib.Nifti1Image(found, np.eye(4)), tmp_path / f"{name}_1mm{end}.nii.gz")
    return tmp_path


@pytest.mark.parametrize("size", [(12, 12, 12), (12, 12)])
def test_half_of_the_samples_are_of_two_heads(heads, size, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from contrast_free import ShapesAndTissues

    options = {"labels": 4, "scale": 4.0, "amplitude": 0.5}
    shapes, pair, one, other = (ShapesAndTissues(size, str(heads), **options)[k] for k in range(4))
    assert shapes["displacement"].isfinite().all()
    assert one["displacement"].isfinite().all()  # no background
    for sample in (pair, other):
        assert sample["displacement"].isnan().all()
        assert set(sample["fixed_label"].unique().tolist()) <= {1, 2}
    for sample in (shapes, pair, one, other):
        assert sample["moving"].shape == (1, *size)
    again = ShapesAndTissues(size, str(heads), **options)[1]
    assert torch.equal(again["moving"], pair["moving"])


def test_without_pairs_half_are_of_one_head(heads, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from contrast_free import ShapesAndTissues

    data = ShapesAndTissues((12, 12, 12), str(heads), pairs=False, labels=4, scale=4.0)
    assert len(data.kinds) == 2
    assert all(data[k]["displacement"].isfinite().all() for k in range(4))
