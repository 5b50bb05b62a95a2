"""A registration has the same bits for every number of threads."""

from pathlib import Path

import pytest
import torch

import diffreg
from diffreg.registration.ordered import BLOCK, ROW, dot, total

HEADS = Path(diffreg.__file__).parent / "demo" / "heads"

OTHERWISE = {"seconds": 0, "device": "", "date": ""}  # of a number of threads
pytestmark = pytest.mark.alone


def by_every_number(run):
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(run())
    finally:
        torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("length", [0, 1, ROW - 1, ROW, 9 * ROW + 1, BLOCK, 2 * BLOCK + ROW + 3])
def test_sums_and_products(length):
    a, b = torch.rand(2, length, generator=torch.Generator().manual_seed(0))
    first, *others = by_every_number(lambda: torch.stack([total(a), dot(a, b)]))
    assert all(torch.equal(first, other) for other in others)
    expected = torch.stack([a.double().sum(), torch.dot(a.double(), b.double())])
    torch.testing.assert_close(first.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("similarity", ["auto", "mi", "ngf"])
def test_a_registration_of_volumes(similarity):
    files = [HEADS / f"{name}_t1_2mm.nii.gz" for name in ("colin27", "mni152")]
    options = {"affine": "none", "similarity": similarity, "iterations": (8, 4, 2)}
    first, *others = by_every_number(lambda: diffreg.register(*files, **options))
    for other in others:
        assert torch.equal(torch.as_tensor(first.displacement), torch.as_tensor(other.displacement))
        told = [
            {**result.metrics, "seconds": 0, "device": "", "date": ""} for result in (first, other)
        ]
        assert told[0] == told[1]


@pytest.mark.parametrize("fixed", ["mni152_t1", "mni152_gm"], ids=["one contrast", "two"])
def test_a_registration_of_slices(fixed):
    files = [diffreg.read_image(HEADS / f"{name}.nii.gz", 10) for name in ("colin27_t1", fixed)]
    first, *others = by_every_number(lambda: diffreg.register(*files))
    assert ("edges_in_common" in first.metrics["contrast"]) == (fixed == "mni152_gm")
    for other in others:
        assert torch.equal(torch.as_tensor(first.displacement), torch.as_tensor(other.displacement))
        assert first.metrics["contrast"] == other.metrics["contrast"]
