"""What a caller has set in torch changes no result: a registration is part of larger programs."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import diffreg
from diffreg.data.shapes import _blurred

pytestmark = pytest.mark.usefixtures("one_thread")

X = np.arange(20.0)


def blob(at):
    return np.exp(-((X[:, None] - at) ** 2 + (X - 8) ** 2 / 2 + 0.2 * X * X[:, None] / 20) / 9)


def found():
    """What comes of a pair and is done with it, as bits."""
    points = np.array([[10.0, 9.0]])
    result = diffreg.register(
        torch.from_numpy(blob(11)), blob(9), iterations=3, landmarks=(points, points + 1.0, 0.1)
    )
    kept = [result.displacement, result.warped, result.inverse.displacement, result.affine]
    kept += [result.apply(blob(11) > 0.5), result.apply(points), result.transform.parts[0]]
    kept[-1] = kept[-1].displacement
    assert result.certificate.folded_cells == 0
    assert not any(part.is_inference() for part in kept if isinstance(part, torch.Tensor))
    return [np.asarray(part).tobytes() for part in kept]


@pytest.fixture(scope="module")
def usual():
    return found()


@contextmanager
def of_process(setting, value, usual):
    setting(value)
    try:
        yield
    finally:
        setting(usual)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu"),
    "device": lambda: torch.device("meta"),  # as "cuda" would be, where it is not
    "dtype": lambda: of_process(torch.set_default_dtype, torch.float64, torch.float32),
    "half": lambda: of_process(torch.set_default_dtype, torch.bfloat16, torch.float32),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_change_no_bit(mode, usual):
    with MODES[mode]():
        assert found() == usual
        assert torch.is_inference_mode_enabled() == (mode == "inference_mode")
        assert torch.is_grad_enabled() == (mode not in ("inference_mode", "no_grad"))
        assert torch.is_autocast_enabled("cpu") == (mode == "autocast")


def test_drawn_images_are_of_one_dtype():
    image = torch.rand(8, 9)
    with MODES["dtype"]():
        again = _blurred(image, 1.3)
    assert torch.equal(again, _blurred(image, 1.3))
