"""Sums in one order on a CPU: torch adds up a long one in as many parts as it has threads."""

from __future__ import annotations

import torch
from torch import Tensor

ROW = 4096  # numbers that are added up in a row: fewer than torch shares among threads
BLOCK = 2**19  # products at once: they stay near the processor, and in memory that is kept


def total(values: Tensor) -> Tensor:
    """The sum of all values, ().

    Example:
        >>> import torch
        >>> from diffreg.registration.ordered import total
        >>> total(torch.ones(3, 5000))
        tensor(15000.)
    """
    flat = values.reshape(-1)
    rows = len(flat) // ROW
    if rows == 0 or not flat.is_cpu:
        return flat.sum()
    found = total(flat[: rows * ROW].view(rows, ROW).sum(1))
    return found if len(flat) == rows * ROW else found + flat[rows * ROW :].sum()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two tensors of one size, ().

    Example:
        >>> import torch
        >>> from diffreg.registration.ordered import dot
        >>> dot(torch.ones(2, 3), torch.full((2, 3), 2.0))
        tensor(12.)
    """
    a, b = a.reshape(-1), b.reshape(-1)
    if not a.is_cpu:
        return torch.dot(a, b)
    found = total(a[:BLOCK] * b[:BLOCK])
    for begin in range(BLOCK, len(a), BLOCK):  # Tensor.split takes longer than a product
        found = found + total(a[begin : begin + BLOCK] * b[begin : begin + BLOCK])
    return found
