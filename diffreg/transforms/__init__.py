"""Transforms of every tool: values, files, resampling; each maps the fixed space to the moving."""

from diffreg.data.grid import Grid
from diffreg.transforms.files import (
    FORMATS,
    STORED,
    can_hold,
    format_of,
    format_to_write,
    read,
    read_field,
    write,
)
from diffreg.transforms.on_grid import flattened
from diffreg.transforms.resampling import resample
from diffreg.transforms.values import Affine, Chain, Field, Transform, compose

__all__ = [
    "FORMATS",
    "STORED",
    "Affine",
    "Chain",
    "Field",
    "Grid",
    "Transform",
    "can_hold",
    "compose",
    "flattened",
    "format_of",
    "format_to_write",
    "read",
    "read_field",
    "resample",
    "write",
]
