"""Grids, fields and images drawn at random, and the same for SimpleITK."""

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from diffreg.data.grid import LPS, Grid
from diffreg.transforms import Affine, Chain, Field


def grid(rng, size, mirrored=None, centre=(0.0, 0.0, 0.0)):
    """Oblique and anisotropic; left-handed or not as it falls."""
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if mirrored is not None and (np.linalg.det(axes) < 0) != mirrored:
        axes[:, 0] *= -1
    affine = np.eye(4)
    affine[:3, :3] = axes * rng.uniform(0.7, 2.5, 3)
    middle = (np.array((*size, 1)[:3]) - 1) / 2
    affine[:3, 3] = np.array(centre) + rng.uniform(-2, 2, 3) - affine[:3, :3] @ middle
    return Grid(size, affine)


def affine(rng, size=0.15, shift=3.0):
    matrix = np.eye(4)
    matrix[:3, :3] += rng.uniform(-size, size, (3, 3))
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return Affine(matrix)


def field(rng, on, size=1.5, dtype=torch.float64):
    """Smooth, of about `size` voxels."""
    axes = on.dimensions
    coarse = torch.from_numpy(rng.uniform(-size, size, (1, axes, *(4,) * axes)))
    mode = "trilinear" if axes == 3 else "bilinear"
    smooth = F.interpolate(coarse, size=on.size, mode=mode, align_corners=True)
    return Field(smooth.to(dtype), on)


def image(rng, size):
    """Smooth numbers of a range of about 100."""
    coarse = torch.from_numpy(rng.uniform(0, 100, (1, 1, *(5,) * len(size))))
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return F.interpolate(coarse, size=size, mode=mode, align_corners=True)[0, 0].numpy()


def write_pair(place, rng, size):
    """fixed.nii.gz and moving.nii.gz, oblique, the moving one mirrored; the fixed one's grid."""
    grids = {name: grid(rng, size, name == "moving") for name in ("fixed", "moving")}
    for name, on in grids.items():
        array = image(rng, on.size).astype(np.float32)
        nib.save(nib.Nifti1Image(array, on.affine), place / f"{name}.nii.gz")
    return grids["fixed"]


def points(rng, on, count=40, beyond=0.0):
    """Within a grid, or a share of it beyond, (K, 3), RAS mm."""
    size = np.array((*on.size, 1)[:3]) - 1
    voxels = rng.uniform(-beyond * size, (1 + beyond) * size, (count, 3))
    return voxels @ on.affine[:3, :3].T + on.affine[:3, 3]


def itk_image(array, on, vectors=False):
    """Numbers (*S), or (C, *S), on a grid."""
    lps = LPS @ on.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    made = sitk.GetImageFromArray(np.ascontiguousarray(array.T), isVector=vectors)
    made.SetSpacing(spacing.tolist())
    made.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    made.SetOrigin(lps[:3, 3].tolist())
    return made


def itk_transform(transform):
    """The same for SimpleITK, which applies the last one added first."""
    if isinstance(transform, Chain):
        return sitk.CompositeTransform([itk_transform(t) for t in reversed(transform.parts)])
    if isinstance(transform, Affine):
        matrix = LPS @ transform.matrix @ LPS
        made = sitk.AffineTransform(3)
        made.SetMatrix(matrix[:3, :3].ravel().tolist())
        made.SetTranslation(matrix[:3, 3].tolist())
        return made
    axes = (LPS @ transform.grid.affine)[:3, :3]
    vectors = np.einsum("wk,k...->w...", axes, transform.displacement[0].double().numpy())
    return sitk.DisplacementFieldTransform(itk_image(vectors, transform.grid, vectors=True))


def itk_points(transform, points):
    """Where SimpleITK leads points (K, 3), RAS mm."""
    made, lps = itk_transform(transform), np.diag(LPS)[:3]
    return np.array([made.TransformPoint(tuple(p)) for p in (points * lps).tolist()]) * lps


def itk_text(*entries):
    """ITK's text of transforms, each its type, parameters and fixed parameters."""
    lines = ["#Insight Transform File V1.0"]
    for index, (kind, numbers, fixed) in enumerate(entries):
        lines += [f"#Transform {index}", f"Transform: {kind}"]
        lines += [f"Parameters: {' '.join(map(repr, map(float, numbers)))}"]
        lines += [f"FixedParameters: {' '.join(map(repr, map(float, fixed)))}"]
    return "\n".join([*lines, ""])
