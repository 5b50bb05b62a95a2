"""Whose fields fold: python bench/folding.py NAME=FIELD... prints a table row of each name.

    python bench/folding.py ants=a/1Warp.nii.gz ants=b/1Warp.nii.gz greedy=a/warp.nii.gz

Fields are what `diffreg certify` reads, or .npy arrays in voxels, (3, *S); those of one name are
added up. Central differences are what most papers count, voxel by voxel; corners are all eight of
each cell; the certificate is of the whole cell.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from diffreg.data.transforms import read_field
from diffreg.fields import FoldCertificate, fold_certificate
from diffreg.ops import jacobian_determinant

HEAD = """\
| fields of | fields | of them fold: by central differences, at corners, certified | voxels, by \
central differences | cells, at corners | cells, certified | inside only | undecided | smallest \
determinant | homeomorphisms | seconds a field |
|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass
class Row:
    """What is counted of the fields of one name."""

    name: str
    central: list[int] = field(default_factory=list)  # voxels
    corners: list[int] = field(default_factory=list)  # cells
    found: list[FoldCertificate] = field(default_factory=list)
    voxels: int = 0
    seconds: float = 0.0

    def add(self, u: torch.Tensor) -> None:
        """Count one field (1, 3, *S)."""
        central = central_determinants(u)
        self.voxels += central.numel()
        self.central.append(int((central <= 0).sum()))
        self.corners.append(int((jacobian_determinant(u, "min") <= 0).sum()))
        start = time.thread_time()
        self.found.append(fold_certificate(u))
        self.seconds += time.thread_time() - start

    def __str__(self) -> str:
        fields, cells = len(self.found), sum(f.cells for f in self.found)
        counts = self.central, self.corners, [f.folded_cells for f in self.found]
        totals = self.voxels, cells, cells
        columns = [
            *(self.name, fields),
            ", ".join(str(sum(count > 0 for count in each)) for each in counts),
            *(share(sum(each), total) for each, total in zip(counts, totals, strict=True)),
            sum(f.folded_inside for f in self.found),
            sum(f.undecided_cells for f in self.found),
            f"{min(f.smallest_determinant for f in self.found):.3g}",
            sum(f.passes for f in self.found),
            f"{self.seconds / fields:.2f}",
        ]
        return f"| {' | '.join(map(str, columns))} |"


def share(count: int, total: int) -> str:
    """A count, and what it is of all in per cent."""
    return f"{count:,} ({100 * count / total:.2g} %)" if count else "0"


def central_determinants(u: torch.Tensor) -> torch.Tensor:
    """Of phi = id + u, (1, 3, *S), by central differences at the voxels inside the border."""
    inner = [slice(None), *[slice(1, -1)] * 3]
    columns = []
    for axis in range(3):
        high, low = list(inner), list(inner)
        high[1 + axis], low[1 + axis] = slice(2, None), slice(None, -2)
        columns.append((u[0][tuple(high)] - u[0][tuple(low)]) / 2)
    eye = torch.eye(3, dtype=u.dtype).reshape(3, 3, 1, 1, 1)
    e, f, g = torch.stack(columns) + eye
    return (e * torch.linalg.cross(f, g, dim=0)).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fields", nargs="+", metavar="NAME=FIELD")
    torch.set_num_threads(1)
    rows: dict[str, Row] = {}
    for argument in parser.parse_args().fields:
        name, _, path = argument.partition("=")
        u = (
            torch.from_numpy(np.load(path))[None].double()
            if path.endswith(".npy")
            else read_field(path)
        )
        if u.ndim != 5:
            raise SystemExit(f"{path} must be a volume's field, got {list(u.shape)}")
        rows.setdefault(name, Row(name)).add(u)
    print(HEAD)
    for row in rows.values():
        print(row)


if __name__ == "__main__":
    main()
