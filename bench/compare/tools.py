"""Other people's deformable registrations of images on one grid, a fresh process each.

    python bench/compare/tools.py METHOD FIXED MOVING OUT

writes OUT.nii (ITK's displacements, mm) or OUT.npz (voxels), and OUT.json: the seconds of the
search alone, and the package's version. Imports only what the method needs: an import is part of
what a process costs. Settings are each tool's documented best for heads; the start is the identity.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

GREEDY = "-m NCC 2x2x2 -n 100x50x10"
GREEDY_LONG = "-m NCC 2x2x2 -n 100x100x100 -s 1.732vox 0.7071vox"
GREEDY_THIN = "-m NCC 2x2x2 -n 100x50"  # a third level would leave three planes of a heart
GREEDY_WNCC = "-m WNCC 2x2x2 -n 100x50x10"
GREEDY_NMI = "-m NMI -n 100x50x10"
GREEDY_SLICES = "-m NCC 2x2 -n 100x50x10"
GREEDY_WNCC_SLICES = "-m WNCC 2x2 -n 100x50x10"
DEMONS = {"sigma": 1.0, "iterations": 40}  # diffeomorphic, three levels
DEMONS_FINE = {"sigma": 0.7, "iterations": 80}
# What cardiac.py chose for the slices of SCD0000301 on those of four others.
DEMONS_SLICES = {"forces": "symmetric", "sigma": 1.0, "iterations": 40, "levels": 2}
CC_SLICES = {"syn_metric": "CC", "syn_sampling": 4, "reg_iterations": (100, 100, 100, 100)}
CC = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (100, 70, 50, 20)}
MATTES = {"syn_metric": "mattes", "syn_sampling": 32, "reg_iterations": (100, 70, 50, 20)}
FIREANTS = {"scales": [4, 2, 1], "iterations": [200, 100, 50], "cc_kernel_size": 5}
FIREANTS_FINE = {**FIREANTS, "smooth_warp_sigma": 0.25}  # 0.5 by default
FIREANTS_MI = {**FIREANTS, "loss_type": "mi"}
# The field has 32 planes at least, the images of scale 1 those that they have: not for thin stacks.
THIN = {"scales": [4, 2], "iterations": [200, 100]}
FIREANTS_THIN, FIREANTS_MI_THIN = {**FIREANTS, **THIN}, {**FIREANTS_MI, **THIN}
CONVEX_ADAM = {"grid_sp": 3, "disp_hw": 4, "lambda_weight": 0.65}
# What elastix's model zoo has for heads of different people (Par0035, Hammers' atlas).
ELASTIX = {
    "Registration": "MultiResolutionRegistration",  # by the metric alone, no bending energy
    "Metric": "AdvancedMattesMutualInformation",
    "NumberOfHistogramBins": 32,
    "NumberOfResolutions": 3,
    "ImagePyramidSchedule": "4 4 4 2 2 2 1 1 1",
    "FinalGridSpacingInPhysicalUnits": 5.0,
    "GridSpacingSchedule": "4 2 1",
    "MaximumNumberOfIterations": 500,
    "NumberOfSpatialSamples": 5000,
    "FixedKernelBSplineOrder": 1,
    "SP_A": 10.0,
}
Found = tuple[Callable[[], object], Callable[[object], None]]  # the search; what writes its result


def told(options: dict) -> str:
    return json.dumps(options)[1:-1]


def greedy(options: str, axes: int = 3) -> Callable[[str, str, str], Found]:
    def method(fixed: str, moving: str, out: str) -> Found:
        import picsl_greedy

        search = getattr(picsl_greedy, f"Greedy{axes}D")().execute
        words = f"-d {axes} -threads 1 {options} -i {fixed} {moving} -o {out}.nii"
        return lambda: search(words), lambda _: None

    return method


def demons(**options) -> Callable[[str, str, str], Found]:
    def method(fixed: str, moving: str, out: str) -> Found:
        import SimpleITK as sitk
        from demons import register

        images = [sitk.ReadImage(path, sitk.sitkFloat32) for path in (fixed, moving)]
        return lambda: register(*images, **options), lambda u: sitk.WriteImage(u, f"{out}.nii")

    return method


def syn(**options) -> Callable[[str, str, str], Found]:
    """ANTs; options of antspyx's `registration`."""

    def method(fixed: str, moving: str, out: str) -> Found:
        import ants

        images = [ants.image_read(path) for path in (fixed, moving)]

        def write(found) -> None:
            (field,) = (name for name in found["fwdtransforms"] if name.endswith(".nii.gz"))
            ants.image_write(ants.image_read(field), f"{out}.nii")

        more = {"outprefix": f"{out}_", "random_seed": 1, **options}
        return lambda: ants.registration(*images, "SyNOnly", **more), write

    return method


def dipy(metric: str) -> Callable[[str, str, str], Found]:
    """SyN by a metric of dipy.align.metrics."""

    def method(fixed: str, moving: str, out: str) -> Found:
        import nibabel as nib
        import numpy as np
        from dipy.align import metrics
        from dipy.align.imwarp import SymmetricDiffeomorphicRegistration

        files = [nib.load(path) for path in (fixed, moving)]
        images = [file.get_fdata() for file in files]
        kept = np.ix_(*[[*range(images[0].ndim), 3]] * 2)
        affine = files[0].affine[kept]
        measure = getattr(metrics, metric)(images[0].ndim)
        search = SymmetricDiffeomorphicRegistration(measure, level_iters=[100, 50, 25])

        def write(found) -> None:
            along_axes = found.get_forward_field() @ np.linalg.inv(affine[:-1, :-1]).T  # of mm, RAS
            np.savez(f"{out}.npz", u=along_axes.astype(np.float32))

        return lambda: search.optimize(
            *images, static_grid2world=affine, moving_grid2world=files[1].affine[kept]
        ), write

    return method


def fireants(**options) -> Callable[[str, str, str], Found]:
    def method(fixed: str, moving: str, out: str) -> Found:
        import numpy as np
        from fireants.io import BatchedImages, Image
        from fireants.registration.greedy import GreedyRegistration

        paths = {"fixed_images": fixed, "moving_images": moving}
        images = {
            name: BatchedImages([Image.load_file(path, device="cpu")])
            for name, path in paths.items()
        }

        def search() -> GreedyRegistration:
            found = GreedyRegistration(**images, **options, progress_bar=False)
            found.optimize()
            return found

        def write(found: GreedyRegistration) -> None:  # its own writer knows volumes alone
            grid = found.get_warp_parameters(*images.values())["grid"][0].detach().numpy().T
            lengths = [(size - 1) / 2 for size in grid.shape[1:]]  # of its unit, voxels
            np.savez(f"{out}.npz", u=np.stack([u * k for u, k in zip(grid, lengths, strict=True)]))

        return search, write

    return method


def convex_adam(**options) -> Callable[[str, str, str], Found]:
    def method(fixed: str, moving: str, out: str) -> Found:
        import nibabel as nib
        import numpy as np
        import torch
        from convexAdam.convex_adam_MIND import convex_adam_pt

        images = [torch.from_numpy(nib.load(path).get_fdata()).float() for path in (fixed, moving)]
        return (
            lambda: convex_adam_pt(*images, **options, device=torch.device("cpu")),
            lambda u: np.savez(f"{out}.npz", u=u.astype(np.float32)),
        )

    return method


def elastix(**options) -> Callable[[str, str, str], Found]:
    """A B-spline grid; the options replace entries of elastix's own default for that."""

    def method(fixed: str, moving: str, out: str) -> Found:
        import itk

        images = [itk.imread(path, itk.F) for path in (fixed, moving)]
        parameters = itk.ParameterObject.New()
        chosen = parameters.GetDefaultParameterMap("bspline")
        for name, value in options.items():
            chosen[name] = str(value).split()
        parameters.AddParameterMap(chosen)

        def write(found) -> None:
            field = itk.transformix_deformation_field(images[1], found[1])
            itk.imwrite(field, f"{out}.nii")

        return lambda: itk.elastix_registration_method(*images, parameter_object=parameters), write

    return method


class Method(NamedTuple):
    package: str
    setting: str  # told in the results; other words there, and all pairs are run anew
    prepare: Callable[[str, str, str], Found]


METHODS = {
    "greedy": Method("picsl_greedy", GREEDY, greedy(GREEDY)),
    "greedy 100x100x100": Method("picsl_greedy", GREEDY_LONG, greedy(GREEDY_LONG)),
    "greedy 2 levels": Method("picsl_greedy", GREEDY_THIN, greedy(GREEDY_THIN)),
    "greedy WNCC": Method("picsl_greedy", GREEDY_WNCC, greedy(GREEDY_WNCC)),
    "greedy NMI": Method("picsl_greedy", GREEDY_NMI, greedy(GREEDY_NMI)),
    "greedy in 2-D": Method("picsl_greedy", GREEDY_SLICES, greedy(GREEDY_SLICES, 2)),
    "greedy WNCC in 2-D": Method("picsl_greedy", GREEDY_WNCC_SLICES, greedy(GREEDY_WNCC_SLICES, 2)),
    "greedy NMI in 2-D": Method("picsl_greedy", GREEDY_NMI, greedy(GREEDY_NMI, 2)),
    "demons": Method("SimpleITK", told(DEMONS), demons(**DEMONS)),
    "demons sigma 0.7": Method("SimpleITK", told(DEMONS_FINE), demons(**DEMONS_FINE)),
    "demons symmetric": Method("SimpleITK", told(DEMONS_SLICES), demons(**DEMONS_SLICES)),
    "SyNOnly": Method("antspyx", "its defaults", syn()),
    "SyNOnly CC": Method("antspyx", told(CC), syn(**CC)),
    "SyNOnly CC radius 4": Method("antspyx", told(CC_SLICES), syn(**CC_SLICES)),
    "SyNOnly Mattes": Method("antspyx", told(MATTES), syn(**MATTES)),
    "dipy SyN": Method("dipy", "CC, 100 50 25", dipy("CCMetric")),
    "dipy SyN EM": Method("dipy", "EM, 100 50 25", dipy("EMMetric")),
    "FireANTs": Method("fireants", told(FIREANTS), fireants(**FIREANTS)),
    "FireANTs sigma 0.25": Method("fireants", told(FIREANTS_FINE), fireants(**FIREANTS_FINE)),
    "FireANTs MI": Method("fireants", told(FIREANTS_MI), fireants(**FIREANTS_MI)),
    "FireANTs 2 levels": Method("fireants", told(FIREANTS_THIN), fireants(**FIREANTS_THIN)),
    "FireANTs MI 2 levels": Method(
        "fireants", told(FIREANTS_MI_THIN), fireants(**FIREANTS_MI_THIN)
    ),
    "ConvexAdam": Method("convexAdam", told(CONVEX_ADAM), convex_adam(**CONVEX_ADAM)),
    "ConvexAdam defaults": Method("convexAdam", "its defaults", convex_adam()),
    "elastix": Method("itk-elastix", told(ELASTIX), elastix(**ELASTIX)),
    "elastix defaults": Method("itk-elastix", "its default for B-splines", elastix()),
}


def main(method: str, fixed: str, moving: str, out: str) -> None:
    package, _, prepare = METHODS[method]
    search, write = prepare(fixed, moving, out)
    begin = time.process_time()
    found = search()
    costs = {"search_s": time.process_time() - begin, "version": f"{package} {version(package)}"}
    write(found)
    Path(f"{out}.json").write_text(json.dumps(costs))


if __name__ == "__main__":
    main(*sys.argv[1:])
