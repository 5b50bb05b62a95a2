"""Similarities and deformation energies as modules, and the objective that weighs them.

A similarity is minimised. SSD, NCC, PLS and Dice are 0 when aligned; LNCC and NGF are not: flat
regions cost 1; MI is minus an information and falls below 0.
"""

from diffreg.losses.alignment import Dice, EndPoint, InverseConsistency, Keypoint
from diffreg.losses.energies import curvature_energy, total_variation
from diffreg.losses.objective import (
    SIMILARITIES,
    WEIGHTS,
    DeformationEnergy,
    Objective,
    ObjectiveTerms,
    Weights,
    usual_objective,
)
from diffreg.losses.presets import PRESETS, Preset
from diffreg.losses.similarities import (
    LNCC,
    MI,
    NCC,
    NGF,
    PLS,
    REDUCTIONS,
    SSD,
    sum_of_squares,
)
from diffreg.ops import mutual_information

__all__ = [
    "LNCC",
    "MI",
    "NCC",
    "NGF",
    "PLS",
    "PRESETS",
    "REDUCTIONS",
    "SIMILARITIES",
    "SSD",
    "WEIGHTS",
    "DeformationEnergy",
    "Dice",
    "EndPoint",
    "InverseConsistency",
    "Keypoint",
    "Objective",
    "ObjectiveTerms",
    "Preset",
    "Weights",
    "curvature_energy",
    "mutual_information",
    "sum_of_squares",
    "total_variation",
    "usual_objective",
]
