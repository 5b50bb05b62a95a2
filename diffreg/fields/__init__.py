"""Displacements in voxels: compose, integrate, invert; certify, repair; warp labels, points."""

from diffreg.fields.certificate import FoldCertificate, fold_certificate
from diffreg.fields.composition import (
    compose,
    identity_grid,
    integrate,
    inversion_residual,
    invert,
    resize,
    warp_points,
)
from diffreg.fields.labels import warp_labels
from diffreg.fields.repair import Repair, make_diffeomorphic
from diffreg.fields.safe_scale import largest_safe_scale

__all__ = [
    "FoldCertificate",
    "Repair",
    "compose",
    "fold_certificate",
    "identity_grid",
    "integrate",
    "inversion_residual",
    "invert",
    "largest_safe_scale",
    "make_diffeomorphic",
    "resize",
    "warp_labels",
    "warp_points",
]
