"""1 - cc against its plain PyTorch reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Case, image_pair, main

from diffreg.ops import correlation, correlation_reference

CASE = Case(
    name="correlation",
    inputs=image_pair,
    operator=correlation,
    reference=correlation_reference,
    bytes_forward=8,
    bytes_backward=12,
)

if __name__ == "__main__":
    main(CASE)
