"""What Newton's method reads of a field: values and slopes, within the grid and beyond it."""

import pytest
import torch
from cases import uniform

from diffreg.fields import warp_points
from diffreg.fields.inversion import _sampled


@pytest.mark.parametrize("size", [(6, 5), (4, 5, 3), (4, 1)], ids=str)
def test_slopes_are_those_of_the_values(size):
    """Beyond the grid the border is repeated: the map is a shift along that axis."""
    dimensions, step = len(size), 1e-6
    u = 0.4 * uniform((1, dimensions, *size), torch.float64)
    places = 0.5 + 0.6 * uniform((1, 60, dimensions), torch.float64, 1)  # -0.1 to 1.1 of the size
    points = places * torch.tensor(size)
    assert ((points < 0) | (points > torch.tensor(size) - 1)).any()
    value, jacobian = _sampled(u[0], points[0].T.contiguous())
    torch.testing.assert_close(value.T, (warp_points(points, u) - points)[0])
    for axis in range(dimensions):
        shift = step * torch.eye(dimensions, dtype=torch.float64)[axis]
        ahead, behind = (warp_points(points + sign * shift, u)[0] for sign in (1, -1))
        expected = (ahead - behind) / (2 * step)
        torch.testing.assert_close(jacobian[:, :, axis], expected, rtol=0, atol=1e-7)
