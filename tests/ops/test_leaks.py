"""No call of an operator leaves memory behind: its arguments of text did, 48 bytes each."""

import ctypes
import sys

import pytest
import torch
from cases import PLAIN

CALLS = 200
BYTES = 8  # a call; the smallest block has 32


class Held(ctypes.Structure):
    """mallinfo2's, of malloc.h."""

    _fields_ = [
        *((f"before_{k}", ctypes.c_size_t) for k in range(4)),
        ("mapped", ctypes.c_size_t),
        *((f"between_{k}", ctypes.c_size_t) for k in range(2)),
        ("given", ctypes.c_size_t),
        *((f"after_{k}", ctypes.c_size_t) for k in range(2)),
    ]


LIBRARY = ctypes.CDLL(None)
told = sys.platform == "linux" and hasattr(LIBRARY, "mallinfo2")
pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not told, reason="the C library is no glibc from 2.33 on"),
]


def held():
    """Bytes that the C library has given and not got back."""
    LIBRARY.mallinfo2.restype = Held
    now = LIBRARY.mallinfo2()
    return now.given + now.mapped


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.operator)
def test_a_call_leaves_nothing_behind(case):
    """Forward and backward; the least of three runs, for caches may grow in one."""
    inputs = [
        tensor.requires_grad_(needed)
        for tensor, needed in zip(
            case.inputs(2, 1, (6, 7), torch.float32), case.differentiable, strict=True
        )
    ]

    def run():
        total = sum(value.sum() for value in case(*inputs) if value.requires_grad)
        torch.autograd.grad(total, [tensor for tensor in inputs if tensor.requires_grad])

    grown = []
    for _ in range(4):
        before = held()
        for _ in range(CALLS):
            run()
        grown.append((held() - before) / CALLS)
    assert min(grown[1:]) < BYTES
