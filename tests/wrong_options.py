"""Calls of the compiled operators with a wrong option, and what they must say."""

import torch

PADDING = "padding must be 'border', 'zeros' or 'reflection', got 'x'"
INTERPOLATION = "interpolation must be 'linear', 'nearest' or 'cubic', got 'x'"
REDUCE = "reduce must be 'none', 'min', 'mean' or 'bound', got 'x'"
PENALTY = "penalty must be 'hyperelastic', 'log2', 'hinge' or 'relu', got 'x'"
SPACING = "spacing must have 2 values, got 1"
WINDOW = "window must be odd and positive, got 4"
WINDOW_BELOW_0 = "window must be odd and positive, got -3"

IMAGE, FIELD, SCALE = torch.zeros(1, 1, 4, 5), torch.zeros(1, 2, 4, 5), torch.ones(1)


def objective(**changed):
    options = {"mixture": [1.0, 1.0, 0.0, 1.0, 1.0, 1.0], "weights": 4 * [1.0], "padding": "border"}
    options |= {"spacing": [1.0, 1.0], "penalty": "relu", "threshold": 0.0}
    return (IMAGE, IMAGE, FIELD, SCALE, SCALE, None, *(options | changed).values())


CASES = [
    ("warp", (IMAGE, FIELD, "linear", "x"), PADDING),
    ("warp", (IMAGE, FIELD, "x", "border"), INTERPOLATION),
    ("warp_backward", (IMAGE, IMAGE, FIELD, "linear", "x", True, True), PADDING),
    ("deformation_energy", (FIELD, [1.0, 1.0], "x", 0.2), PENALTY),
    ("deformation_energy", (FIELD, [1.0], "relu", 0.2), SPACING),
    ("deformation_energy_backward", (*3 * (SCALE,), FIELD, [1.0, 1.0], "x", 0.2), PENALTY),
    ("jacobian_determinant", (FIELD, "x"), REDUCE),
    (
        "parallel_level_sets",
        (IMAGE, IMAGE, SCALE, SCALE, "x", None),
        "variant must be 'pls', 'smooth' or 'ngf', got 'x'",
    ),
    ("registration_objective", (*objective(padding="x"), True, True), PADDING),
    ("registration_objective", (*objective(penalty="x"), True, True), PENALTY),
    ("registration_objective", (*objective(spacing=[1.0]), True, True), SPACING),
    (
        "registration_objective",
        (*objective(mixture=[1.0]), True, True),
        "mixture must have 6 factors, got 1",
    ),
    (
        "registration_objective",
        (*objective(weights=[1.0]), True, True),
        "weights must have 4 factors, got 1",
    ),
    ("registration_objective", (*objective(), True, True, 4), WINDOW),
    ("registration_objective_backward", (*5 * (SCALE,), *objective(), -3), WINDOW_BELOW_0),
    ("registration_objective_backward", (*5 * (SCALE,), *objective(penalty="x")), PENALTY),
]
