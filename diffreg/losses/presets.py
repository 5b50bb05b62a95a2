"""What is minimised where nothing else is said: similarities with the weights that go with them."""

from collections.abc import Mapping
from typing import NamedTuple

from diffreg.ops import Weights
from diffreg.ops._objective import DEFAULT_WEIGHTS


class Preset(NamedTuple):
    """What is minimised where nothing else is said."""

    similarity: Mapping[str, float]
    weights: Weights


# "paper": lambda = 60 is Theljani and Chen's, the three ones are ours; it folds on cardiac pairs.
# "default" was found on the very images that it was tried on: tune inside the split. "multimodal"
# was best, or near it, for every measure across modalities on MR and simulated CT (paper/results).
PRESETS = {
    "default": Preset({"ncc": 1.0, "lncc": 0.2}, DEFAULT_WEIGHTS),
    "multimodal": Preset({"pls": 1.0}, Weights(3, 1, 30, 3)),
    "paper": Preset({"ncc": 1.0}, Weights(60, 1, 1, 1)),
}
