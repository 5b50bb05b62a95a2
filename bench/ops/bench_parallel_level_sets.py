"""Parallel level sets against their plain PyTorch reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Case, image_pair, main

from diffreg.ops import parallel_level_sets, parallel_level_sets_reference

CASE = Case(
    name="parallel_level_sets",
    inputs=image_pair,
    operator=lambda w, r: parallel_level_sets(w, r, 0.01, 0.01),
    reference=lambda w, r: parallel_level_sets_reference(w, r, 0.01, 0.01),
    bytes_forward=8,
    bytes_backward=12,
)

if __name__ == "__main__":
    main(CASE)
