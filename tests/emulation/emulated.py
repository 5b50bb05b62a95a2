"""Loads an emulation library: torch.ops.diffreg_emulation.* are the CUDA drivers and kernels."""

import ctypes
import json
import os
from pathlib import Path

import torch

import diffreg.ops  # noqa: F401  (registers the CPU operators, whose schemas are taken)

FOLDERS = (
    "affine_warp",
    "correlation",
    "deformation_energy",
    "gradient_scale",
    "jacobian_determinant",
    "local_correlation",
    "mutual_information",
    "parallel_level_sets",
    "registration_objective",
    "warp",
)
OPERATORS = (
    *FOLDERS,
    *(f"{name}_backward" for name in FOLDERS),
    "registration_objective_scale",
)
GRID_LIMIT = 2**31 - 1
ENOUGH_TILES = 512  # as on a GPU


class Emulation:
    """One library, with its order of execution, its launch limit and its traffic counts."""

    def __init__(self, library: Path):
        self._schemas = torch.library.Library("diffreg_emulation", "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.diffreg, name).default._schema)
            self._schemas.define(schema.removeprefix("diffreg::"))
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library), mode=os.RTLD_NOW)
        self._library.emulation_report.restype = ctypes.c_char_p
        self.ops = torch.ops.diffreg_emulation

    def set(
        self,
        seed: int = 0,
        grid_limit: int = GRID_LIMIT,
        counting: bool = False,
        enough_tiles: int = ENOUGH_TILES,
    ) -> None:
        """Seed 0 runs threads and blocks in order; the counts start again at nothing.

        Args:
            enough_tiles: fewer make strips of columns shorter; 0: all are long.
        """
        limit, enough = ctypes.c_int64(grid_limit), ctypes.c_int64(enough_tiles)
        self._library.emulation_set(ctypes.c_uint(seed), limit, enough, ctypes.c_int(counting))

    def traffic(self) -> dict[str, dict[str, int]]:
        """Launches, blocks, bytes and sectors of each kernel since `set`."""
        return json.loads(self._library.emulation_report())
