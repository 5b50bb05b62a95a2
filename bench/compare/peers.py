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
from demons import register

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


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


def demons(moving: torch.Tensor, fixed: torch.Tensor, **options) -> torch.Tensor:
    """SimpleITK's demons on a pyramid; options of `register` in demons.py."""
    images = [sitk.GetImageFromArray(image[0, 0].float().numpy()) for image in (fixed, moving)]
    across_first = sitk.GetArrayFromImage(register(*images, **options))  # (H, W, 2), x, then y
    return torch.from_numpy(np.moveaxis(across_first[..., ::-1], -1, 0).astype(np.float32))[None]
