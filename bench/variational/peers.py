"""What a user could run instead: ANTs SyN (antspyx) and SimpleITK's demons, on one thread.

Every function takes images (1, 1, H, W) and returns the displacement as diffreg has it:
(1, 2, H, W) float32, voxels, component k along axis k, warped(p) = moving(p + u(p)).
"""

import os

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # before ITK is loaded

import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
DEMONS = {
    "diffeomorphic": sitk.DiffeomorphicDemonsRegistrationFilter,
    "symmetric": sitk.FastSymmetricForcesDemonsRegistrationFilter,
}


def ants(moving: torch.Tensor, fixed: torch.Tensor, **options) -> torch.Tensor:
    """antspyx's `registration` with these options.

    Its images are in memory; its transforms go through files, in memory where there is /dev/shm.
    The affine part, where there is one, is composed with the warp.
    """
    import ants as antspyx  # imports half a scientific stack: only where it is wanted

    images = [antspyx.from_numpy(image[0, 0].double().numpy()) for image in (fixed, moving)]
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        prefix = str(Path(folder) / "t_")
        antspyx.config._random_seed = 1
        found = antspyx.registration(*images, outprefix=prefix, **options)
        transforms = found["fwdtransforms"]
        if len(transforms) > 1:
            transforms = antspyx.apply_transforms(*images, transforms, compose=prefix)
        else:
            transforms = transforms[0]
        field = antspyx.image_read(transforms).numpy()
    return torch.from_numpy(np.moveaxis(field, -1, 0).astype(np.float32))[None]


def demons(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    forces: str = "diffeomorphic",
    sigma: float = 1.5,
    iterations: int = 80,
    levels: int = 3,
    update_sigma: float = 0.0,
) -> torch.Tensor:
    """SimpleITK's demons on a pyramid.

    Args:
        forces: "diffeomorphic" or "symmetric".
        sigma: of the smoothing of the field, voxels.
        iterations: on each level.
        levels: each half the size of the next.
        update_sigma: of the smoothing of the update, voxels; 0 is none.
    """
    images = [sitk.GetImageFromArray(image[0, 0].float().numpy()) for image in (fixed, moving)]
    method = DEMONS[forces]()
    method.SetNumberOfIterations(iterations)
    method.SetSmoothDisplacementField(sigma > 0)
    method.SetStandardDeviations(max(sigma, 1e-3))
    method.SetSmoothUpdateField(update_sigma > 0)
    method.SetUpdateFieldStandardDeviations(max(update_sigma, 1e-3))
    field = None
    for level in reversed(range(levels)):
        pair = [_coarser(image, 2**level) for image in images]
        if field is None:
            field = method.Execute(*pair)
        else:
            field = method.Execute(*pair, sitk.Resample(field, pair[0]))
    across_first = sitk.GetArrayFromImage(field)  # (H, W, 2), ITK's order: x, then y
    return torch.from_numpy(np.moveaxis(across_first[..., ::-1], -1, 0).astype(np.float32))[None]


def _coarser(image: sitk.Image, factor: int) -> sitk.Image:
    """Smoothed, then of voxels `factor` times as long over the same extent."""
    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, factor / 2)
    return sitk.BinShrink(smooth, [factor] * image.GetDimension())
