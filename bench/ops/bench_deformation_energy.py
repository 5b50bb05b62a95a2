"""The three deformation energies against their plain PyTorch reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Case, displacement, main

from diffreg.ops import deformation_energy, deformation_energy_reference

CASE = Case(
    name="deformation_energy",
    inputs=lambda samples, size: (displacement(samples, size),),
    operator=lambda u: sum(deformation_energy(u)),
    reference=lambda u: sum(deformation_energy_reference(u)),
    bytes_forward=8,
    bytes_backward=16,
)

if __name__ == "__main__":
    main(CASE)
