"""What is installed, and whether the kernels fit the GPUs here."""

from __future__ import annotations

import platform

import numpy
import torch

from diffreg.ops._core import build_info
from diffreg.ops._gpus import Machine, this_machine, too_old, verdict


def description(machine: Machine | None = None, core: dict[str, str] | None = None) -> list[str]:
    """What is installed, a line each.

    Args:
        machine: None is this one.
        core: what the compiled library says of itself; None asks it.

    Returns:
        "name: value" lines; those about GPUs say in words what does not fit, and what would.

    Example:
        >>> from diffreg.cli.info import description
        >>> from diffreg.ops._gpus import Machine
        >>> core = {"cuda_architectures": "80 90 ptx90", "cuda_runtime": "13.0"}
        >>> description(Machine([("NVIDIA H200", 90)], 13000, "13.0"), core)[-1]
        'GPU 0: NVIDIA H200 (sm_90), runs the kernels built for sm_90'
    """
    core = build_info() if core is None else core
    machine = this_machine() if machine is None else machine
    lines = core | {
        "python": platform.python_version(),
        "torch at run time": torch.__version__,
        "numpy": numpy.__version__,
        "threads": str(torch.get_num_threads()),
    }
    return [*(f"{key}: {value}" for key, value in lines.items()), *_gpu_lines(machine, core)]


def _gpu_lines(machine: Machine, core: dict[str, str]) -> list[str]:
    if machine.torch_cuda is None:
        return ["GPU: not used, torch is a CPU build"]
    if not machine.gpus:
        return [f"GPU: not used, {_why_none(machine)}"]
    lines = []
    for index, (name, capability) in enumerate(machine.gpus):
        runs, words = verdict(capability, machine.driver, core)
        words = words if runs else f"NOT usable: {words}"
        lines.append(f"GPU {index}: {name} (sm_{capability}), {words}")
    return lines


def _why_none(machine: Machine) -> str:
    """Why torch, a CUDA build, has no GPU."""
    if machine.driver is None:
        return "there is no driver"
    if found := too_old(machine.driver, machine.torch_cuda or "0"):
        return (
            f"the driver runs CUDA {found}, and torch was built with {machine.torch_cuda}; update "
            f"the driver, or install a torch for CUDA {found}"
        )
    return "torch finds none"
