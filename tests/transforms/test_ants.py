"""ANTs itself, where antspyx is installed (constraints-ants.txt), with the files of ours."""

import drawn_transforms as drawn
import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.data.grid import LPS
from diffreg.transforms import compose, read, resample, write

ants = pytest.importorskip("ants", reason="antspyx is not here: constraints-ants.txt")


@pytest.mark.filterwarnings("ignore:.*outside the grid of a field")
@pytest.mark.parametrize("seed", range(6))
def test_images_and_points_as_ants_has_them(tmp_path, seed):
    """Oblique, anisotropic, left-handed or not, as it falls; warp and affine, and both in one."""
    rng = np.random.default_rng(seed)
    fixed, moving = drawn.grid(rng, (14, 12, 13)), drawn.grid(rng, (15, 16, 11))
    chain = compose([drawn.field(rng, fixed, 0.8, torch.float32), drawn.affine(rng, 0.1, 1.0)])
    files = {name: str(tmp_path / name) for name in ("w.nii.gz", "a.mat", "whole.h5", "a.csv")}
    write(files["w.nii.gz"], chain.parts[0])
    write(files["a.mat"], chain.parts[1])
    write(files["whole.h5"], chain)
    array = drawn.image(rng, moving.size).astype(np.float32)
    for name, values, on in (("m", array, moving), ("f", np.zeros(fixed.size, "f4"), fixed)):
        nib.save(nib.Nifti1Image(values, on.affine), tmp_path / f"{name}.nii.gz")
    images = [ants.image_read(str(tmp_path / f"{name}.nii.gz")) for name in "fm"]
    ours = resample(tmp_path / "m.nii.gz", tmp_path / "f.nii.gz", chain, "linear", 0.0)
    ours = ours.data[0, 0].numpy()
    points = drawn.points(rng, fixed, 30)
    lps = dict(zip("xyz", (points @ LPS[:3, :3]).T, strict=True))
    for listed in (["w.nii.gz", "a.mat"], ["whole.h5"]):
        paths = [files[name] for name in listed]
        theirs = ants.apply_transforms(*images, transformlist=paths).numpy()
        inside = (ours != 0) == (theirs != 0)  # rounding may tell one voxel in or out
        assert (~inside).sum() <= 2 and (ours != 0).mean() > 0.1
        assert np.abs(ours - theirs)[inside].max() < 1e-4 * np.ptp(array)
        import pandas

        found = ants.apply_transforms_to_points(3, pandas.DataFrame(lps), paths)
        found = found[["x", "y", "z"]].to_numpy() @ LPS[:3, :3]
        assert np.abs(found - chain(points)).max() < 1e-4
    again = compose([read(files["w.nii.gz"]), read(files["a.mat"])])
    assert np.abs(again(points) - chain(points)).max() < 1e-5
