"""What is minimised where nothing else is said: similarities with the weights that go with them."""

from collections.abc import Mapping
from typing import NamedTuple

from diffreg.ops import Weights
from diffreg.ops._objective import DEFAULT_WEIGHTS, WINDOW


class Preset(NamedTuple):
    """What is minimised where nothing else is said."""

    similarity: Mapping[str, float]
    weights: Weights
    threshold: float | None = None  # of the determinant's penalty; None: the penalty's own
    window: int = WINDOW  # of "lncc", voxels


# "paper": lambda = 60 is Theljani and Chen's, the three ones are ours; it folds on cardiac pairs.
# "default" was found on the very images that it was tried on: tune inside the split. "multimodal"
# was best, or near it, for every measure across modalities by itself on MR and simulated CT
# (paper/results): networks train with it, and such a measure has its weights where it is named.
# "slice" and "volume" are those of `register` within a modality, for its levels, which grow stiffer
# (diffreg.registration.variational): tissue that moves through a slice's plane leaves a misfit that
# no displacement mends, and that only a stiffer one leaves alone. No weights served both. Across
# modalities theirs are "multimodal_slice" and "multimodal_volume": edges that are parallel, values
# that are locally a line's, rising or falling, and a little of what one image tells of the other.
_ACROSS = {"pls": 1.0, "lncc": 1.0, "mi": 0.2}
PRESETS = {
    "default": Preset({"ncc": 1.0, "lncc": 0.2}, DEFAULT_WEIGHTS),
    "slice": Preset({"ncc": 1.0, "lncc": 0.5}, Weights(60, 0, 100, 1), 0.1),
    "volume": Preset({"ncc": 1.0, "lncc": 0.4}, Weights(60, 0, 4, 0.4), 0.1, window=5),
    "multimodal": Preset({"pls": 1.0}, Weights(3, 1, 30, 3)),
    "multimodal_slice": Preset(_ACROSS, Weights(15, 0, 120, 1)),
    "multimodal_volume": Preset(_ACROSS, Weights(15, 0, 30, 1), window=5),
    "paper": Preset({"ncc": 1.0}, Weights(60, 1, 1, 1)),
}
