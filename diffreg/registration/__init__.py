"""Registration of one pair or of many: prepared, brought onto each other, written down."""

from diffreg.affine import AffineStart, register_affine
from diffreg.registration.files import read_registration, write_registration
from diffreg.registration.pair import register, register_batch
from diffreg.registration.result import SAME_CONTRAST, Registration
from diffreg.registration.variational import register_variational

__all__ = [
    "SAME_CONTRAST",
    "AffineStart",
    "Registration",
    "read_registration",
    "register",
    "register_affine",
    "register_batch",
    "register_variational",
    "write_registration",
]
