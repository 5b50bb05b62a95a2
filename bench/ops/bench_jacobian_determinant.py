"""Corner determinants against their plain PyTorch reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Case, displacement, main

from diffreg.ops import jacobian_determinant, jacobian_determinant_reference

CASE = Case(
    name="jacobian_determinant",
    inputs=lambda samples, size: (displacement(samples, size),),
    operator=jacobian_determinant,
    reference=jacobian_determinant_reference,
    bytes_forward=24,
    bytes_backward=32,
)

if __name__ == "__main__":
    main(CASE)
