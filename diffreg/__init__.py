"""Learned diffeomorphic image registration on hand-written kernels under PyTorch."""

__version__ = "0.1.0"
