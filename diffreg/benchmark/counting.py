"""What noise cannot touch: operators called, bytes allocated for what they return, peaks."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counts(NamedTuple):
    """Of one run.

    `operators` in the order of their calls, such as "diffreg.warp.default"; `allocated` bytes of
    storage that they returned and did not get. What an operator gives back before it returns is not
    seen, of torch's as of ours: `registration_objective` holds the warped image and the gradient to
    it, 8 bytes a voxel and channel in float32; the other CPU kernels some rows a thread.
    """

    operators: list[str]
    allocated: int


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.allocated = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        made = _storages(value) - given
        if made or not given:  # not a view
            self.operators.append(str(function))
        self.allocated += sum(size for _, size in made)
        return value


def _storages(value: object) -> set[tuple[int, int]]:
    """Address and bytes of every tensor's; autograd's own zeros have none."""
    tensors = [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
    storages = [t.untyped_storage() for t in tensors if not t._is_zerotensor()]
    return {(storage.data_ptr(), storage.nbytes()) for storage in storages}


def counted(run: Callable[[], object]) -> Counts:
    """Counts a run; what it makes only once, such as an identity grid, must be there already.

    Example:
        >>> import torch
        >>> from diffreg.benchmark.counting import counted
        >>> x = torch.ones(4)
        >>> counted(lambda: (x + x).square())
        Counts(operators=['aten.add.Tensor', 'aten.pow.Tensor_Scalar'], allocated=32)
    """
    with _Record() as record:
        run()
    return Counts(record.operators, record.allocated)


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Most memory that torch's allocator held during a run, above what it held at its start.

    Args:
        run: without arguments; what it makes only once, such as Adam's moments, is there already.
        device: "cpu", as torch's profiler sees it, or "cuda".
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it says that it begins and that it ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def peak_mebibytes(
    runs: Mapping[str, Callable[[], object]], device: str = "cpu"
) -> dict[str, float]:
    """The peak of each run, in units of 2^20 bytes."""
    return {name: round(peak_bytes(run, device) / 2**20, 2) for name, run in runs.items()}
