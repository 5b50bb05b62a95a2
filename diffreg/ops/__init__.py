"""Fused operators of image registration, each with a hand-written backward pass.

Needs torch and numpy only. Every operator has a ``<op>_reference`` in plain PyTorch beside it: its
documentation, the oracle of its tests and the baseline of its benchmark.
"""

from diffreg.ops import _core  # loads the compiled operators
from diffreg.ops._objective import RegistrationObjective, Weights
from diffreg.ops.affine_warp import affine_warp, affine_warp_reference
from diffreg.ops.correlation import correlation, correlation_reference
from diffreg.ops.deformation_energy import (
    DeformationEnergy,
    deformation_energy,
    deformation_energy_reference,
)
from diffreg.ops.gradient_scale import gradient_scale, gradient_scale_reference
from diffreg.ops.jacobian_determinant import (
    jacobian_determinant,
    jacobian_determinant_reference,
)
from diffreg.ops.local_correlation import local_correlation, local_correlation_reference
from diffreg.ops.mutual_information import mutual_information, mutual_information_reference
from diffreg.ops.parallel_level_sets import parallel_level_sets, parallel_level_sets_reference
from diffreg.ops.registration_objective import (
    registration_objective,
    registration_objective_reference,
    registration_objective_value_and_gradient,
)
from diffreg.ops.warp import warp, warp_reference

if not _core.HAS_CORE:
    from diffreg.ops import _plain  # noqa: F401  (registers the operators of its name)

__all__ = [
    "DeformationEnergy",
    "RegistrationObjective",
    "Weights",
    "affine_warp",
    "affine_warp_reference",
    "correlation",
    "correlation_reference",
    "deformation_energy",
    "deformation_energy_reference",
    "gradient_scale",
    "gradient_scale_reference",
    "jacobian_determinant",
    "jacobian_determinant_reference",
    "local_correlation",
    "local_correlation_reference",
    "mutual_information",
    "mutual_information_reference",
    "parallel_level_sets",
    "parallel_level_sets_reference",
    "registration_objective",
    "registration_objective_reference",
    "registration_objective_value_and_gradient",
    "warp",
    "warp_reference",
]
