"""The edge scale of an image against its plain PyTorch reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Case, image_pair, main

from diffreg.ops import gradient_scale, gradient_scale_reference

CASE = Case(
    name="gradient_scale",
    inputs=lambda samples, size: image_pair(samples, size)[:1],
    operator=gradient_scale,
    reference=gradient_scale_reference,
    bytes_forward=4,
    bytes_backward=8,
)

if __name__ == "__main__":
    main(CASE)
