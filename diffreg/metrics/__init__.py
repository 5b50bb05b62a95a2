"""How good a registration is: numbers for evaluation only, in float64 and without gradients.

Images are (*S) or (1, 1, *S), displacements (D, *S) or (1, D, *S) in voxels, D = len(S) = 2 or 3;
tensors or arrays. A spacing is the length of a voxel along each axis in mm, or one for all.
`mask`, where there is one, weights the voxels: 0 outside, 1 inside; what lies outside has no say.
"""

from diffreg.metrics.displacements import (
    displacement_length,
    end_point_error,
    folding,
    inverse_consistency,
    sd_log_jacobian,
    sd_log_jacobian_learn2reg,
    smallest_determinant,
    target_registration_error,
)
from diffreg.metrics.intensities import (
    mutual_information,
    ncc,
    normalized_mutual_information,
    relative_ssd,
    structural_similarity,
)
from diffreg.metrics.labels import dice, shared_labels, surface_distances

__all__ = [
    "dice",
    "displacement_length",
    "end_point_error",
    "folding",
    "inverse_consistency",
    "mutual_information",
    "ncc",
    "normalized_mutual_information",
    "relative_ssd",
    "sd_log_jacobian",
    "sd_log_jacobian_learn2reg",
    "shared_labels",
    "smallest_determinant",
    "structural_similarity",
    "surface_distances",
    "target_registration_error",
]
