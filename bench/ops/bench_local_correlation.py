"""Local correlation in windows of 9 voxels against its plain PyTorch reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Case, image_pair, main

from diffreg.ops import local_correlation, local_correlation_reference

CASE = Case(
    name="local_correlation",
    inputs=image_pair,
    operator=local_correlation,
    reference=local_correlation_reference,
    bytes_forward=8,
    bytes_backward=12,
)

if __name__ == "__main__":
    main(CASE)
