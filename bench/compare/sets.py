"""The sets of labelled volumes and slices, and who is run on which pairs of them, in this order."""

from typing import NamedTuple


class Group(NamedTuple):
    """Pairs of pairs.csv under one name, or of slice_pairs.py.

    Args:
        title: on the page.
        about: what is measured there, a sentence or two.
        compared: the labels whose overlap is measured; (): all that both people have.
        landmarks: whether the other labels are points, whose distance is measured.
    """

    title: str
    about: str
    compared: tuple[int, ...] = ()
    landmarks: bool = False


GROUPS = {
    "brain2mm": Group(
        "Heads, 2 mm",
        "T1, 80 x 96 x 80 voxels, ten pairs of twenty people; Dice of 130 labels drawn by hand.",
    ),
    "brain2mm_simulated": Group(
        "Heads, 2 mm, in two contrasts",
        "The same ten pairs, the moving head in a contrast that is simulated: intensities x, 0 to "
        "1, are 1 - |2 x - 1|, with grey matter brightest.",
    ),
    "cardiac3d": Group(
        "Hearts",
        "Cine MR, end-systole to end-diastole, 96 x 96 x 10 to 13 voxels, planes 8 to 10 mm apart; "
        "Dice of the left ventricle's cavity.",
    ),
    "prostate_mrus": Group(
        "Prostates, MR to ultrasound",
        "44 x 59 x 41 voxels of nominally .8 mm; Dice of the gland, and the target registration "
        "error (TRE): the mean distance of landmarks in the gland, mm, a person's mean first. "
        "[What was tried](variational.md#prostates-what-was-tried) to do better.",
        (1,),
        True,
    ),
    "abdomen_ctmr": Group(
        "Abdomen, CT to MR",
        "117 x 91 x 20 voxels of 3 mm, two people, labels by a model: one pair, a smoke test.",
    ),
    "brain1mm": Group(
        "Heads, 1 mm",
        "The same heads, 160 x 192 x 160 voxels: three pairs, of slow tools one.",
    ),
    "slices_mr": Group(
        "Slices of a heart",
        "Cine MR, end-systole to end-diastole, 112 x 112 voxels round what moves, the ten labelled "
        "slices of SCD0000301, whom lunet-cardiac-mr has not seen: one person, and so no interval; "
        "Dice of the left ventricle's cavity. [Five people](#slices-of-five-hearts) are below.",
    ),
    "slices_ctmr": Group(
        "Slices, simulated CT to MR",
        "[CT simulated](data.md#mr-and-simulated-ct-ctmrsimulated_120npz) from the MR of "
        "SCD0000301, whom lunet-mr-ct has not seen, and bent: 24 pairs of 160 x 160 voxels, one "
        "person, and so no interval; the mean distance to the known displacement in the body, "
        "voxels, and Dice of the cavity, which is labelled in 16 of the pairs.",
    ),
}


class Task(NamedTuple):
    group: str
    method: str
    pairs: int | None = None  # the first of the group; None: all


def each(group: str, *methods: str, pairs: int | None = None) -> list[Task]:
    return [Task(group, method, pairs) for method in methods]


VOLUMES = ("brain2mm", "brain2mm_simulated", "cardiac3d", "prostate_mrus", "abdomen_ctmr")
# What is cheap first, set by set, then what is slow: a page can be written at any moment.
PLAN = (
    *each("brain2mm", "identity", "diffreg", "greedy", "demons", "SyNOnly", "dipy SyN"),
    *each("brain2mm", "FireANTs", "ConvexAdam", "diffreg fast", "diffreg long"),
    *each("cardiac3d", "identity", "diffreg", "diffreg fast", "diffreg long", "greedy"),
    *each("cardiac3d", "greedy 2 levels", "demons", "demons sigma 0.7", "SyNOnly", "SyNOnly CC"),
    *each("cardiac3d", "dipy SyN"),
    *each("cardiac3d", "FireANTs", "FireANTs 2 levels", "ConvexAdam", "elastix defaults"),
    *each("brain2mm_simulated", "identity", "diffreg", "diffreg mi", "greedy WNCC", "greedy NMI"),
    *each("brain2mm_simulated", "SyNOnly", "SyNOnly Mattes", "ConvexAdam defaults"),
    *each("prostate_mrus", "identity", "diffreg", "diffreg ngf", "greedy WNCC", "greedy NMI"),
    *each("prostate_mrus", "SyNOnly", "ConvexAdam defaults"),
    *each("abdomen_ctmr", "identity", "diffreg", "diffreg ngf", "greedy WNCC", "greedy NMI"),
    *each("abdomen_ctmr", "SyNOnly", "SyNOnly Mattes", "dipy SyN EM", "FireANTs MI"),
    *each("abdomen_ctmr", "FireANTs MI 2 levels", "ConvexAdam defaults", "elastix defaults"),
    *[
        Task(group, method)
        for group in (
            "brain2mm",
            "brain2mm_simulated",
            "cardiac3d",
            "prostate_mrus",
            "abdomen_ctmr",
        )
        for method in ("diffreg lunet-any", "diffreg lunet-any, refined")
    ],
    *each("slices_mr", "identity", "diffreg", "diffreg lunet-cardiac-mr"),
    *each("slices_mr", "diffreg lunet-cardiac-mr, refined", "greedy in 2-D", "demons"),
    *each("slices_mr", "demons symmetric", "SyNOnly", "SyNOnly Mattes", "SyNOnly CC"),
    *each("slices_mr", "SyNOnly CC radius 4", "dipy SyN", "FireANTs", "elastix defaults"),
    *each("slices_ctmr", "identity", "diffreg", "diffreg ngf", "diffreg lunet-mr-ct"),
    *each("slices_ctmr", "diffreg lunet-mr-ct, refined", "greedy WNCC in 2-D"),
    *each("slices_ctmr", "greedy NMI in 2-D", "SyNOnly", "SyNOnly Mattes", "SyNOnly CC"),
    *each("slices_ctmr", "dipy SyN EM", "FireANTs MI", "elastix defaults"),
    *[
        Task(group, method)
        for group in ("slices_mr", "slices_ctmr")
        for method in ("diffreg lunet-any-2d", "diffreg lunet-any-2d, refined")
    ],
    *each("brain2mm_simulated", "FireANTs MI", "dipy SyN EM", "elastix"),
    *each("brain2mm", "diffreg network", "diffreg network, refined", "VoxelMorph"),
    *each("brain2mm", "greedy 100x100x100", "demons sigma 0.7", "elastix", "FireANTs sigma 0.25"),
    *each("brain1mm", "identity", "diffreg", "greedy"),
    *each("brain1mm", "diffreg lunet-any", "diffreg lunet-any, refined"),
    *each("prostate_mrus", "SyNOnly Mattes", "FireANTs MI", "dipy SyN EM", "elastix defaults"),
    *each("brain2mm", "diffreg from greedy"),
    *each("cardiac3d", "diffreg from FireANTs 2 levels"),
    *each("abdomen_ctmr", "diffreg from greedy NMI"),
    *each("prostate_mrus", "diffreg from ConvexAdam defaults"),
    *each("brain1mm", "diffreg from greedy"),
    *each("brain1mm", "demons", "SyNOnly", "dipy SyN"),
    *each("brain1mm", "elastix", pairs=1),
    *each("brain2mm", "SyNOnly CC"),
    *each("brain1mm", "ConvexAdam", "FireANTs"),
    *each("brain1mm", "SyNOnly CC", pairs=1),
)
