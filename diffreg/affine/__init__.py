"""Two images brought onto each other as a whole, before anything is deformed."""

from diffreg.affine.register import AffineStart, register_affine

__all__ = ["AffineStart", "register_affine"]
