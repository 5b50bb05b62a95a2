"""Arguments of the wrong type or shape: refused in words, where they are read first."""

import numpy as np
import pytest
import torch
from test_registration import FIXED, MOVING
from torch import nn

from diffreg import ops
from diffreg.data.geometry import Image
from diffreg.data.normalization import Normalization
from diffreg.data.resampling import resample_to
from diffreg.fields import integrate
from diffreg.losses import LNCC, MI, Objective
from diffreg.models import SN, LUNet
from diffreg.registration import register

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = torch.rand(1, 1, 4, 5)


@pytest.mark.parametrize(
    ("data", "affine", "error", "message"),
    [
        (
            DATA.numpy(),
            np.eye(4),
            TypeError,
            r"data must be .* \(1, 1, \*S\), got ndarray",
        ),
        (
            "a.nii",
            np.eye(4),
            TypeError,
            "data must be .*diffreg.read_image reads a file",
        ),
        (DATA[0], np.eye(4), ValueError, r"data must be \(1, 1, \*S\).*got \[1, 4, 5\]"),
        (DATA[..., None, None], np.eye(4), ValueError, r"got \[1, 1, 4, 5, 1, 1\]"),
        (torch.rand(2, 1, 4, 5), np.eye(4), ValueError, r"got \[2, 1, 4, 5\]"),
        (torch.rand(1, 1, 0, 5), np.eye(4), ValueError, r"got \[1, 1, 0, 5\]"),
        (DATA.to(torch.complex64), np.eye(4), TypeError, "data must be real, got torch.complex64"),
        (DATA, torch.eye(4), TypeError, r"affine must be an array \(4, 4\) of numbers, got Tensor"),
        (DATA, None, TypeError, "got NoneType"),
        (DATA, np.eye(3), ValueError, r"affine must be \(4, 4\), got \(3, 3\)"),
        (DATA, np.diag([1.0, 0, 1, 1]), ValueError, "the header gives a voxel no extent"),
    ],
)
def test_an_image_that_is_none(data, affine, error, message):
    with pytest.raises(error, match=message):
        Image(data, affine)


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (np.ones((1, 1, 4, 5), bool), TypeError, "valid must be a tensor of bools, got ndarray"),
        (torch.ones(1, 1, 4, 5), TypeError, "valid must be a tensor of bools, got Tensor"),
        (torch.ones(1, 1, 5, 4).bool(), ValueError, "valid must have the shape of data"),
    ],
)
def test_where_an_image_is_valid(valid, error, message):
    with pytest.raises(error, match=message):
        Image(DATA, np.eye(4), valid=valid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MOVING.data, FIXED), "moving must be a diffreg Image, got Tensor"),
        ((MOVING, "fixed.nii"), "fixed must be a diffreg Image, got str"),
        ((MOVING, FIXED, np.zeros((1, 2, 64, 56))), "displacement must be a tensor, got ndarray"),
    ],
)
def test_resampling_refuses_in_words(arguments, message):
    with pytest.raises(TypeError, match=message):
        resample_to(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"moving": [[1.0, 2.0]]},
            "moving must be a path, a diffreg Image, a numpy array, a torch tensor, a nibabel "
            "image, a SimpleITK image or an ants image, got list",
        ),
        ({"fixed": None}, "fixed must be a path, .*, got NoneType"),
        ({"fixed_mask": 1}, "fixed_mask must be a path, .*, got int"),
        ({"moving_mask": True}, "moving_mask must be a path, .*, got bool"),
        ({"normalization": (0.5, 99.5)}, "normalization must be a diffreg Normalization or None"),
        ({"network": FIXED}, "network must be a torch.nn.Module, got Image"),
        ({"network": LUNet}, "network must be callable, .*got <class"),
        (
            {"network": "lunet-cardiac-mr"},
            "network must be a torch.nn.Module, got str; give "
            r'\*\*diffreg.load_pretrained."lunet-cardiac-mr".',
        ),
        ({"objective": "ncc"}, "objective must be a diffreg Objective or None, got str"),
        ({"levels": 2.0}, "levels must be int, got float"),
        ({"iterations": True}, "iterations must be int, got bool"),
        ({"guarantee": 1}, "guarantee must be bool, got int"),
        ({"both_ways": "yes"}, "both_ways must be bool, got str"),
        ({"progress": True}, "progress must be callable or None, got bool"),
    ],
)
def test_register_refuses_in_words(options, message):
    with pytest.raises(TypeError, match=message):
        register(**{"moving": MOVING, "fixed": FIXED, **options})


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), "0", True])
def test_a_fill_that_is_no_number(fill):
    for refusing in (register, resample_to):
        with pytest.raises(ValueError, match="fill must be a finite number or None, got "):
            refusing(MOVING, FIXED, fill=fill)
    assert resample_to(MOVING, FIXED, fill=np.float32(2)).shape == FIXED.data.shape


def test_a_similarity_beside_an_objective():
    """It said the similarity in the metrics, and the method minimised another."""
    with pytest.raises(ValueError, match="both say what is minimised: leave out 'pls'"):
        register(MOVING, FIXED, similarity="pls", objective=Objective("ncc"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "ncd"}, "similarity must be one of 'auto', .*'ncd'"),
        ({"affine": "rigid body"}, "affine must be one of 'auto', .*'rigid body'"),
        ({"affine": np.eye(3)}, r"affine must be \(4, 4\), got \(3, 3\)"),
        ({"device": "tpu"}, "device must be cpu, cuda or auto, got 'tpu'"),
        ({"refine": 3}, "refine needs a network"),
    ],
)
def test_an_option_that_there_is_not(options, message):
    with pytest.raises(ValueError, match=message):
        register(MOVING, FIXED, **options)


def test_an_image_of_another_kind():
    with pytest.raises(ValueError, match="kind must be one of nifti, png, npz, got 'dicom'"):
        Image(DATA, np.eye(4), kind="dicom")


class Pair(nn.Module):
    """A network that returns more than its displacement."""

    def forward(self, moving, fixed):
        return moving, fixed


def test_a_network_that_returns_something_else():
    with pytest.raises(TypeError, match=r"the network must give a tensor, got tuple"):
        register(MOVING, FIXED, network=Pair())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", [LUNet, SN])
def test_networks_in_other_precisions(model, dtype):
    """Their images are handed to them as they are; the field is float32, near that of float32."""
    torch.manual_seed(0)
    network = model().eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    expected = register(MOVING, FIXED, network=network).displacement
    found = register(MOVING, FIXED, network=network.to(dtype)).displacement
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_another_default_dtype(dtype):
    """Of networks made and images registered under it."""
    expected = register(MOVING, FIXED, levels=1, iterations=3).displacement
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = register(MOVING, FIXED, levels=1, iterations=3).displacement
        network = LUNet()
        image = torch.rand(1, 1, 32, 32, dtype=torch.float32)
        assert network(image.to(dtype), image.to(dtype)).shape == (1, 2, 32, 32)
        assert register(MOVING, FIXED, network=network).displacement.dtype == torch.float32
        assert Normalization()(MOVING.data).dtype == torch.float32
        Objective("ncc")(MOVING.data / 180, FIXED.data / 180, torch.zeros(1, 2, 64, 56).float())
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


IMAGES, FIELDS = (torch.rand(1, 1, 4, 5),) * 2, torch.zeros(1, 2, 4, 5)
MAP = torch.eye(2, 3)[None]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.warp(IMAGES[0], FIELDS, trf=1), r"warp\(\) .*'trf': use displacement"),
        (lambda: ops.affine_warp(IMAGES[0], MAP, dsize=(4, 5)), "'dsize': use size"),
        (lambda: ops.affine_warp(IMAGES[0], M=MAP, size=(4, 5)), "'M': pass matrix"),
        (lambda: ops.local_correlation(*IMAGES, window_size=3), "'window_size': use window"),
        (lambda: ops.mutual_information(*IMAGES, num_bins=3), "'num_bins': use bins"),
        (lambda: ops.deformation_energy(FIELDS, normalize=True), r"use spacing=\[1 / n for"),
        (lambda: ops.jacobian_determinant(disp=FIELDS), "'disp': use displacement"),
        (lambda: integrate(FIELDS, num_steps=3), r"integrate\(\) .*'num_steps': use steps"),
        (lambda: LNCC(kernel_size=3), r"^LNCC\(\) has no argument 'kernel_size': use window"),
        (lambda: MI(num_bins=3), r"^MI\(\) has no argument 'num_bins': use bins"),
    ],
)
def test_other_libraries_names_are_answered_with_ours(call, words):
    with pytest.raises(TypeError, match=words):
        call()
