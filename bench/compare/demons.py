"""SimpleITK's demons on a pyramid, images of two or three axes; SimpleITK alone is needed."""

import SimpleITK as sitk

DEMONS = {
    "diffeomorphic": sitk.DiffeomorphicDemonsRegistrationFilter,
    "symmetric": sitk.FastSymmetricForcesDemonsRegistrationFilter,
}
SMALLEST = 16  # voxels: an axis is not made shorter than that


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    forces: str = "diffeomorphic",
    sigma: float = 1.5,
    iterations: int = 80,
    levels: int = 3,
    update_sigma: float = 0.0,
) -> sitk.Image:
    """The displacement from fixed to moving, in the units of the images' spacing.

    Args:
        forces: "diffeomorphic" or "symmetric".
        sigma: of the smoothing of the field, voxels.
        iterations: on each level.
        levels: each half the size of the next.
        update_sigma: of the smoothing of the update, voxels; 0 is none.
    """
    method = DEMONS[forces]()
    method.SetNumberOfIterations(iterations)
    method.SetSmoothDisplacementField(sigma > 0)
    method.SetStandardDeviations(max(sigma, 1e-3))
    method.SetSmoothUpdateField(update_sigma > 0)
    method.SetUpdateFieldStandardDeviations(max(update_sigma, 1e-3))
    field = None
    for level in reversed(range(levels)):
        pair = [_coarser(image, 2**level) for image in (fixed, moving)]
        if field is None:
            field = method.Execute(*pair)
        else:
            field = method.Execute(*pair, sitk.Resample(field, pair[0]))
    return field


def _coarser(image: sitk.Image, factor: int) -> sitk.Image:
    """Smoothed, of voxels `factor` times as long over the same extent; thin axes as they are."""
    factors = [factor if size // factor >= SMALLEST else 1 for size in image.GetSize()]
    for axis, (each, length) in enumerate(zip(factors, image.GetSpacing(), strict=True)):
        if each > 1:
            image = sitk.RecursiveGaussian(image, each / 2 * length, direction=axis)
    return image if set(factors) == {1} else sitk.BinShrink(image, factors)
