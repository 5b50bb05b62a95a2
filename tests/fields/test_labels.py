"""warp_labels: labels move, none is made up, and boundaries are where the warp puts them."""

import pytest
import torch
from fields.drawn import smooth

from diffreg.fields import identity_grid, invert, warp_labels
from diffreg.metrics import dice
from diffreg.ops import warp

SIZE, VOLUME = (24, 30), (9, 12, 10)
SIZES = pytest.mark.parametrize("size", [SIZE, VOLUME], ids=str)
BOTH = pytest.mark.parametrize("interpolation", ["nearest", "linear"])
PADDINGS = pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def blocks(values=(0, 7, 250), size=SIZE, samples=1):
    """Labels (N, 1, *S) in blocks of 3 x 3 voxels, drawn from the values."""
    generator = torch.Generator().manual_seed(5)
    coarse = [-(-n // 3) for n in size]
    drawn = torch.randint(len(values), (samples, 1, *coarse), generator=generator)
    for axis in range(len(size)):
        drawn = drawn.repeat_interleave(3, 2 + axis)
    return torch.tensor(values)[drawn[(..., *map(slice, size))]]


def field(amplitude=4.0, samples=1, size=SIZE):
    return torch.cat([smooth(size, amplitude, seed) for seed in range(samples)])


def shift(*by, size=SIZE, dtype=torch.float32):
    u = torch.tensor(by, dtype=dtype).reshape(1, -1, *[1] * len(by))
    return u.expand(1, len(by), *size)


@BOTH
@PADDINGS
@SIZES
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, torch.bool], ids=str)
def test_the_identity_changes_no_bit(interpolation, padding, size, dtype):
    labels = blocks((0, 1) if dtype == torch.bool else (0, 7, 100), size).to(dtype)
    warped = warp_labels(labels, torch.zeros(1, len(size), *size), interpolation, padding)
    assert warped.dtype == dtype
    assert torch.equal(warped, labels)


@BOTH
@pytest.mark.parametrize("padding, outside", [("border", None), ("zeros", 0)])
def test_a_shift_by_whole_voxels_is_exact(interpolation, padding, outside):
    labels = blocks((3, 7, 250))
    warped = warp_labels(labels, shift(2, -3), interpolation, padding)
    assert torch.equal(warped[..., :-2, 3:], labels[..., 2:, :-3])
    row = labels[..., -1:, :-3].expand(-1, -1, 2, -1)  # rows 24 and 25 are outside
    assert torch.equal(warped[..., -2:, 3:], row if outside is None else 0 * row)


@BOTH
def test_a_shift_of_a_volume_by_whole_voxels_is_exact(interpolation):
    labels = blocks((3, 7, 250), VOLUME)
    warped = warp_labels(labels, shift(2, -3, 1, size=VOLUME), interpolation)
    assert torch.equal(warped[..., :-2, 3:, :-1], labels[..., 2:, :-3, 1:])


@SIZES
def test_nearest_is_the_warp(size):
    labels, u = blocks(size=size, samples=2), field(samples=2, size=size)
    for padding in ("border", "zeros", "reflection"):
        expected = warp(labels, u, "nearest", padding)
        assert torch.equal(warp_labels(labels, u, padding=padding), expected)


@BOTH
@pytest.mark.parametrize(
    "values", [(0, 7, 250), (-5, -1, 3), (2, 9), (-1.5, 0.0, 0.25), (4,), (2**53, 2**53 + 1)]
)
def test_no_label_is_made_up(interpolation, values):
    labels = blocks(values, samples=2)
    u = field(samples=2)
    warped = warp_labels(labels, u, interpolation)
    assert set(warped.unique().tolist()) == set(values)
    with_background = warp_labels(labels, u + 9, interpolation, "zeros").unique().tolist()
    assert set(with_background) == {0, *values}


@PADDINGS
@SIZES
@pytest.mark.parametrize("values", [(0, 7, 250), (-3, 5, 6), (-2.5, -1.0, 4.0)])
def test_linear_takes_the_label_of_the_largest_weight(padding, size, values):
    """All indicators at once: the definition, written down."""
    labels, u = blocks(values, size, samples=2), field(samples=2, size=size).double()
    known = sorted({*values, 0})
    indicators = torch.cat([(labels == value).double() for value in known], 1)
    weights = warp(indicators, u, padding=padding)
    weights[:, known.index(0)] += 1 - weights.sum(1)  # what is read outside is background
    expected = torch.tensor(known)[weights.argmax(1, keepdim=True)]
    assert torch.equal(warp_labels(labels, u, "linear", padding), expected)


@pytest.mark.parametrize("left, right", [(0, 7), (7, 250), (9, 2), (-4, 3), (-4, 0), (-1.5, -2.5)])
def test_at_a_tie_the_smaller_label_wins(left, right):
    labels = torch.tensor([[[[left, right]]]])
    half = shift(0, 0.5, size=(1, 2))
    assert warp_labels(labels, half, "linear").flatten().tolist() == [min(left, right), right]


def test_half_outside_is_a_tie_with_the_background():
    labels = torch.tensor([[[[7, 7]]], [[[-7, -7]]]])
    half = shift(0, 0.5, size=(1, 2)).expand(2, -1, -1, -1)
    assert warp_labels(labels, half, "linear", "zeros").flatten().tolist() == [7, 0, -7, -7]
    assert warp_labels(labels, half, "linear").flatten().tolist() == [7, 7, -7, -7]


def test_three_labels_meet():
    """By hand: what counts is a label's weight, not a voxel's."""
    labels = torch.tensor([[[[1, 2], [5, 2]]]])
    quarter = shift(0.5, 0.25, size=(2, 2))
    # 1: 3/8; 5: 3/8; 2: 1/8 + 1/8. The tie goes to 1.
    assert warp_labels(labels, quarter, "linear")[0, 0, 0, 0] == 1
    # 1: 1/4; 5: 1/4; 2: 1/4 + 1/4, though no single voxel of it is nearer than the others.
    assert warp_labels(labels, shift(0.5, 0.5, size=(2, 2)), "linear")[0, 0, 0, 0] == 2


def test_linear_overlaps_more_there_and_back():
    size = (64, 64)
    y, x = identity_grid(size)[0]
    disc = (((y - 31) ** 2 + (x - 33) ** 2).sqrt() < 16.5).to(torch.uint8)[None, None]
    overlaps = {}
    for interpolation in ("nearest", "linear"):
        overlaps[interpolation] = []
        for seed in range(4):
            u = smooth(size, 2.5, seed)
            there = warp_labels(disc, u, interpolation)
            back = warp_labels(there, invert(u), interpolation)
            overlaps[interpolation].append(dice(back.numpy(), disc.numpy())[1])
    assert all(a > b for a, b in zip(overlaps["linear"], overlaps["nearest"], strict=True))
    assert min(overlaps["linear"]) > 0.98


def test_linear_is_nearer_to_the_disc_itself():
    """Against the disc drawn anew through the known transform, not warped back."""
    size, shares = (64, 64), {"nearest": [], "linear": []}
    for seed in range(4):
        u = smooth(size, 2.5, seed).double()
        y, x = identity_grid(size, torch.float64)[0]
        where = identity_grid(size, torch.float64) + u

        def inside(y, x):
            return (((y - 31) ** 2 + (x - 33) ** 2).sqrt() < 16.5)[None, None].long()

        exact = inside(*where[0])
        for interpolation, found in shares.items():
            warped = warp_labels(inside(y, x), u, interpolation)
            found.append(dice(warped.numpy(), exact.numpy())[1])
    assert sum(shares["linear"]) > sum(shares["nearest"])


@BOTH
def test_the_fixed_grid_may_have_another_size(interpolation):
    labels = blocks((0, 7, 250), size=(30, 40))
    assert torch.equal(warp_labels(labels, shift(3, 5), interpolation), labels[..., 3:27, 5:35])


@BOTH
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_displacements_of_every_type(interpolation, dtype):
    labels = blocks((0, 7, 250))
    u = field().to(dtype)
    expected = warp_labels(labels, u.double(), interpolation)
    assert torch.equal(warp_labels(labels, u, interpolation), expected)


def test_weights_are_not_rounded_to_a_half_type():
    labels = torch.tensor([[[[7, 7], [7, 2]]]])
    # 181/256 along both axes: 7 weighs 0.5001, 2 weighs 0.4999, in bfloat16 both are 0.5.
    u = shift(181 / 256, 181 / 256, size=(1, 1), dtype=torch.bfloat16)
    assert warp_labels(labels, u, "linear").item() == 7


@BOTH
@SIZES
def test_a_displacement_that_is_not_finite(interpolation, size):
    u = torch.zeros(1, len(size), *size)
    one, other = (3, 4, 2)[: len(size)], (5, 6, 9)[: len(size)]
    u[(0, 0, *one)], u[(0, -1, *other)] = torch.nan, torch.inf
    labels = blocks((7, 250), size)
    for dtype, unknown in ((torch.int16, 0), (torch.float32, torch.nan)):
        expected = labels.to(dtype)
        expected[(0, 0, *one)] = expected[(0, 0, *other)] = unknown
        warped = warp_labels(labels.to(dtype), u, interpolation)
        torch.testing.assert_close(warped, expected, rtol=0, atol=0, equal_nan=True)


@BOTH
@PADDINGS
def test_an_empty_batch(interpolation, padding):
    labels = torch.zeros(0, 1, *SIZE, dtype=torch.int16)
    warped = warp_labels(labels, torch.zeros(0, 2, 8, 9), interpolation, padding)
    assert warped.shape == (0, 1, 8, 9) and warped.dtype == torch.int16


@BOTH
def test_inputs_stay_and_no_gradient_is_kept(interpolation):
    labels = blocks().float().requires_grad_()
    u = field().requires_grad_()
    warped = warp_labels(labels, u, interpolation)
    assert not warped.requires_grad
    assert torch.equal(labels, blocks().float()) and torch.equal(u, field())


LABELS = blocks()


@BOTH
@pytest.mark.parametrize(
    "labels, u, options, error, message",
    [
        (
            LABELS[0],
            field(),
            {},
            ValueError,
            r"labels must be \(N, C, H, W\) .*, got \[1, 24, 30\]",
        ),
        (
            LABELS.expand(1, 2, -1, -1),
            field(),
            {},
            ValueError,
            r"labels must be \(N, 1, \*S\), got \[1, 2, 24, 30\]",
        ),
        (LABELS[None], field(), {}, ValueError, "displacement must have as many axes as"),
        (LABELS.numpy(), field(), {}, TypeError, r"labels must be a torch\.Tensor, got ndarray"),
        (LABELS * 1j, field(), {}, TypeError, "labels must be integers or floating, got torch.com"),
        (LABELS / 0, field(), {}, ValueError, "labels must be numbers, some are NaN"),
        (LABELS, field()[:, :1], {}, ValueError, r"displacement must be \(N, 2, H, W\)"),
        (LABELS, field(samples=2), {}, ValueError, "batch size of moving, 1, got 2"),
        (LABELS, field().int(), {}, TypeError, "displacement must be float16"),
        (LABELS, field(), {"padding": "mirror"}, ValueError, "padding must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(interpolation, labels, u, options, error, message):
    with pytest.raises(error, match=message):
        warp_labels(labels, u, interpolation, **options)


def test_another_interpolation_is_refused():
    with pytest.raises(ValueError, match="interpolation must be one of 'linear', 'nearest', got"):
        warp_labels(LABELS, field(), "cubic")
