"""Volumes of more than 2**31 elements: offsets are int64.

Numbers stand in the last planes alone. A page of zeros that is only read costs no memory.
"""

import numpy as np
import pytest
import torch

from diffreg import ops

pytestmark = pytest.mark.long

SIZE = (2049, 1024, 1024)  # 2**31 + 2**20 voxels
CUT = 5  # last planes, of which the first is zeros


def needs(gigabytes):
    """What the operator writes."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    available = int(lines["MemAvailable"].split()[0]) / 1e6
    if available < gigabytes + 1:
        pytest.skip(f"{gigabytes} GB and one to spare are needed, {available:.0f} GB are free")


def zeros(*shape, dtype=np.float32):
    try:
        return torch.from_numpy(np.zeros(shape, dtype))
    except MemoryError:
        pytest.skip("this system gives no address space beyond its memory")


def with_last_planes(channels, size, seed):
    """(1, channels, *size), its last planes random."""
    volume = zeros(1, channels, *size)
    generator = torch.Generator().manual_seed(seed)
    volume[:, :, 1 - CUT :] = torch.rand(1, channels, CUT - 1, *size[1:], generator=generator)
    return volume


def to_the_last_row(along_x):
    """A displacement of four voxels that reads (2048, 1023, 1020 + along_x) and what follows."""
    corner = [float(n - 1) for n in SIZE[:2]] + [SIZE[2] - 4 + along_x]
    return torch.tensor(corner).reshape(1, 3, 1, 1, 1).repeat(1, 1, 1, 1, 4)


@pytest.mark.parametrize(
    ("dtype", "interpolation", "along_x", "expected", "gigabytes"),
    [
        (np.uint8, "nearest", 0.0, [1, 2, 3, 4], 0),
        (np.float32, "linear", -0.5, [0.5, 1.5, 2.5, 3.5], 0),
        (np.float16, "linear", -0.5, [0.5, 1.5, 2.5, 3.5], 8.6),  # a copy in float32
    ],
    ids=["uint8", "float32", "float16"],
)
def test_what_is_read_of_a_moving_image(dtype, interpolation, along_x, expected, gigabytes):
    needs(gigabytes)
    moving = zeros(1, 1, *SIZE, dtype=dtype)
    moving[0, 0, -1, -1, -4:] = torch.arange(1, 5)
    u = to_the_last_row(along_x).requires_grad_(interpolation == "linear")
    warped = ops.warp(moving, u, interpolation)
    assert warped.flatten().tolist() == expected
    if u.requires_grad:
        (gradient,) = torch.autograd.grad(warped.sum(), u)
        assert gradient.flatten(1).tolist() == [[0] * 8 + [1] * 4]


def test_what_is_written_of_a_warped_image():
    needs(2.2)
    labels = (torch.arange(SIZE[0]) % 251).to(torch.uint8).reshape(1, -1, 1, 1, 1)
    warped = ops.warp(labels, zeros(1, 3, 1, *SIZE[1:]), "nearest")
    assert warped.numel() > 2**31
    assert torch.equal(warped.amin((2, 3, 4)), labels[..., 0, 0, 0])
    assert torch.equal(warped.amax((2, 3, 4)), labels[..., 0, 0, 0])


@pytest.mark.parametrize(
    "measure",
    [
        ops.correlation,
        lambda w, r, mask: ops.local_correlation(w, r, 3, mask),
        lambda w, r, mask: ops.parallel_level_sets(w, r, 0.1, 0.1, mask=mask),
        lambda w, r, mask: ops.gradient_scale(w, mask=mask),
    ],
    ids=["correlation", "local_correlation", "parallel_level_sets", "gradient_scale"],
)
def test_measures(measure):
    """Where the mask looks at the last planes alone, they are what is measured."""
    needs(0)
    pair = [with_last_planes(1, SIZE, seed) for seed in (0, 1)]
    mask = zeros(1, 1, *SIZE)
    mask[:, :, -2:] = 1
    cut = [volume[:, :, -CUT:] for volume in (*pair, mask)]
    torch.testing.assert_close(measure(*pair, mask), measure(*cut))


def test_energies_and_determinants():
    """Three components: a third of the voxels. Elsewhere the field is the identity."""
    needs(11.5)
    size = (684, *SIZE[1:])
    u = 0.1 * with_last_planes(3, (CUT, *SIZE[1:]), 0)
    whole, cells = zeros(1, 3, *size), [n - 1 for n in size]
    whole[:, :, -CUT:] = u
    share = (CUT - 1) / cells[0]
    energies = ops.deformation_energy(whole)
    diffusion = sum(
        torch.diff(u, dim=2 + k).double().square().sum() * n / (n - 1) for k, n in enumerate(size)
    ) / np.prod(size)
    assert energies.diffusion.item() == pytest.approx(diffusion.item(), rel=1e-5)
    of_cut = ops.deformation_energy(u).determinant.item()
    assert energies.determinant.item() == pytest.approx(share * of_cut, rel=1e-5)
    smallest = ops.jacobian_determinant(whole, "min")
    assert torch.equal(smallest[:, 1 - CUT :], ops.jacobian_determinant(u, "min"))
    gradients = []
    for field in (whole, u):
        field.requires_grad_()
        determinant = ops.deformation_energy(field).determinant
        gradients.append(torch.autograd.grad(determinant.sum(), field)[0][:, :, -CUT:])
    torch.testing.assert_close(gradients[0], share * gradients[1], rtol=1e-4, atol=1e-14)
