"""The pairs that settings are searched and tried on: hearts, heads, MR / CT, prostates.

Read from the folder of docs/data.md, which has `cardiac`, `ctmr` and `volumes`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pairs
import torch
from contrasts import other
from labelled import SMALLEST_LABEL, in_both, read_pairs

import diffreg
from diffreg.data.prepare import prepare
from diffreg.fields import warp_labels
from diffreg.losses import Objective
from diffreg.metrics import dice
from diffreg.ops import warp
from diffreg.registration.contrast import choose
from diffreg.registration.goal import with_proportions

PLANES = (0.35, 0.45, 0.55, 0.65)  # of a head's height
Labels = tuple[torch.Tensor, torch.Tensor]  # of moving and fixed, (1, 1, *S)


@dataclass(frozen=True)
class Case:
    """A pair on one grid, as `diffreg register` prepares it.

    Args:
        name: PERSON/..., the person that figures are of.
        moving, fixed: (1, 1, *S) in [0, 1].
        mask: (1, 1, *S), or None.
        objective: what `register` minimises where nothing is said.
        labels: (1, 1, *S) each.
        compared: which labels are.
        disturbance: (1, D, *S), voxels, the field that moving was made with, where it was:
            moving(x) = aligned(x + disturbance(x)).
    """

    name: str
    moving: torch.Tensor
    fixed: torch.Tensor
    mask: torch.Tensor | None
    objective: Objective
    labels: Labels
    compared: Sequence[int]
    disturbance: torch.Tensor | None = None

    def accuracy(self, u: torch.Tensor) -> dict[str, float]:
        """Mean Dice of the labels under u (1, D, *S), and the error in voxels where it is known.

        Labels of volumes are read at the nearest voxel, those of slices linearly.
        """
        how = "linear" if u.shape[1] == 2 else "nearest"
        overlaps = dice(warp_labels(self.labels[0], u, how), self.labels[1], list(self.compared))
        found = {"dice": float(np.mean(list(overlaps.values())))}
        if self.disturbance is not None:
            # x = y + u(y) was moved from x + disturbance(x), which should be y.
            apart = u + warp(self.disturbance, u, padding="border")
            body = self.fixed > 0.1
            found["error"] = float(apart.norm(dim=1, keepdim=True)[body].mean())
        return found


Ready = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Objective]


def ready(moving: diffreg.Image, fixed: diffreg.Image) -> Ready:
    """Two images on one grid as `register` has them: moving, fixed, mask, what is minimised."""
    prepared = prepare(moving, fixed)
    goal = with_proportions(choose(prepared).objective, prepared.fixed)
    return prepared.moving_values, prepared.fixed_values, prepared.weights, goal


def case_of(name: str, images: Sequence[diffreg.Image], labels: Sequence, **more) -> Case:
    """A pair of images (moving, fixed) on one grid with their labels (*S), arrays."""
    maps = [torch.from_numpy(np.ascontiguousarray(label))[None, None] for label in labels]
    more.setdefault("compared", in_both(labels))
    return Case(name, *ready(*images), (maps[0], maps[1]), **more)


def heart_slices(data: Path) -> Iterator[Case]:
    for pair in pairs.read_pairs(data / "cardiac"):
        images = [diffreg.image(i, spacing=pair.spacing) for i in (pair.moving, pair.fixed)]
        labels = [label[0, 0].byte().numpy() for label in (pair.moving_label, pair.fixed_label)]
        yield case_of(pair.name, images, labels)


def head_slices(data: Path) -> Iterator[Case]:
    """Axial planes of the heads at 2 mm."""
    for pair in read_pairs(data / "volumes", "brain2mm"):
        files = pair.moving, pair.fixed, pair.moving_label, pair.fixed_label
        volumes = [diffreg.read_image(path) for path in files]
        for share in PLANES:
            k = round(share * volumes[0].shape[2])
            planes = [volume.data[0, 0, :, :, k].numpy() for volume in volumes]
            images = [diffreg.image(plane, spacing=volumes[0].spacing[:2]) for plane in planes[:2]]
            labels = [plane.astype(np.uint8) for plane in planes[2:]]
            name = f"{pair.person}/{pair.name}/{k}"
            yield case_of(name, images, labels, compared=in_both(labels, SMALLEST_LABEL))


def mr_ct(data: Path) -> Iterator[Case]:
    """MR / simulated CT, the pairs with labels."""
    file = np.load(data / "ctmr" / "simulated_120.npz")
    arrays = {name: file[name] for name in file}
    for k, item in enumerate(arrays["items"]):
        labels = [arrays[name][k] for name in ("endo_moving", "endo")]
        if not all(label.any() for label in labels):
            continue
        images = [diffreg.image(arrays[name][k]) for name in ("ct_moving", "mr")]
        disturbance = torch.from_numpy(arrays["disp"][k].astype(np.float32))[None]
        name = str(item).replace(":", "/", 1)
        yield case_of(name, images, labels, disturbance=disturbance)


def volumes(
    group: str, contrast: Callable[[np.ndarray], np.ndarray] | None = None, **more
) -> Callable[[Path], Iterator[Case]]:
    """Of the moving images in another contrast where that is given."""

    def read(data: Path) -> Iterator[Case]:
        for pair in read_pairs(data / "volumes", group):
            images = [diffreg.read_image(path) for path in (pair.moving, pair.fixed)]
            if contrast is not None:
                values = contrast(images[0].data.numpy())
                images[0] = replace(images[0], data=torch.from_numpy(values))
            files = pair.moving_label, pair.fixed_label
            labels = [
                diffreg.read_image(path).data[0, 0].numpy().astype(np.uint8) for path in files
            ]
            yield case_of(f"{pair.person}/{pair.name}", images, labels, **more)

    return read


READERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "hearts, slices": heart_slices,
    "hearts, volumes": volumes("cardiac3d"),
    "heads, slices": head_slices,
    "heads, 2 mm": volumes("brain2mm"),
    "heads, 1 mm": volumes("brain1mm"),
    "heads, two contrasts": volumes("brain2mm", other),
    "MR / simulated CT": mr_ct,
    # The gland; the other labels are of points.
    "prostates, MR / ultrasound": volumes("prostate_mrus", compared=(1,)),
    "abdomen, CT / MR": volumes("abdomen_ctmr"),
}
ACROSS = ("heads, two contrasts", "MR / simulated CT", "abdomen, CT / MR")
FEW_EDGES = ("prostates, MR / ultrasound",)  # by mutual information alone
