"""What is installed, and whether the kernels fit the GPUs here."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

from diffreg.ops._core import PLAIN, build_info


@dataclass(frozen=True)
class Machine:
    """The GPUs that torch sees.

    Args:
        gpus: name and compute capability of each, the capability as in sm_90: 90.
        driver: newest CUDA that the driver runs, as the driver says it: 13000 is 13.0; None: there
            is no driver.
        torch_cuda: the CUDA that torch was built with; None: a CPU build.
    """

    gpus: Sequence[tuple[str, int]] = ()
    driver: int | None = None
    torch_cuda: str | None = None


def driver_version() -> int | None:
    """As the driver says it, for which nothing is started; torch has no public word for it."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    failed = library.cuDriverGetVersion(ctypes.byref(version))
    return None if failed else version.value or None


def this_machine() -> Machine:
    """What torch says; nothing is started on a GPU."""
    if torch.version.cuda is None:
        return Machine()
    driver = driver_version()
    if not torch.cuda.is_available():
        return Machine((), driver, torch.version.cuda)
    gpus = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        gpus.append((torch.cuda.get_device_name(index), 10 * major + minor))
    return Machine(gpus, driver, torch.version.cuda)


def description(machine: Machine | None = None, core: dict[str, str] | None = None) -> list[str]:
    """What is installed, a line each.

    Args:
        machine: None is this one.
        core: what the compiled library says of itself; None asks it.

    Returns:
        "name: value" lines; those about GPUs say in words what does not fit, and what would.

    Example:
        >>> from diffreg.cli.info import Machine, description
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
    if core.get("cpu_variant") == PLAIN:
        return [
            f"GPU {k}: {name} (sm_{n}), runs plain PyTorch"
            for k, (name, n) in enumerate(machine.gpus)
        ]
    if core["cuda_architectures"] == "none":
        return [
            f"GPU {index}: {name} (sm_{capability}), NOT usable: the core was built without CUDA "
            "kernels; build it with DIFFREG_CUDA=auto where there is an nvcc (docs/cuda.md)"
            for index, (name, capability) in enumerate(machine.gpus)
        ]
    needed = core["cuda_runtime"]
    if machine.driver is not None and (found := _too_old(machine.driver, needed)):
        return [
            f"GPU: NOT usable: the driver runs CUDA {found}, the kernels were built with {needed}; "
            f"update the driver, or build with an nvcc of CUDA {found} (docs/cuda.md)"
        ]
    return [
        f"GPU {index}: {name} (sm_{capability}), {_fit(capability, core['cuda_architectures'])}"
        for index, (name, capability) in enumerate(machine.gpus)
    ]


def _too_old(driver: int, needed: str) -> str | None:
    """The CUDA that the driver runs, where that is of a major version before the one needed."""
    older = driver // 1000 < int(needed.split(".")[0])
    return f"{driver // 1000}.{driver % 1000 // 10}" if older else None


def _why_none(machine: Machine) -> str:
    """Why torch, a CUDA build, has no GPU."""
    if machine.driver is None:
        return "there is no driver"
    if found := _too_old(machine.driver, machine.torch_cuda or "0"):
        return (
            f"the driver runs CUDA {found}, and torch was built with {machine.torch_cuda}; update "
            f"the driver, or install a torch for CUDA {found}"
        )
    return "torch finds none"


def _fit(capability: int, architectures: str) -> str:
    """Which of the architectures, "80 90 ptx90", a GPU of this capability runs."""
    words = architectures.split()
    # Machine code runs on its own major version from its minor version on, PTX on all that follow.
    codes = [int(word) for word in words if word.isdigit()]
    fitting = [n for n in codes if n // 10 == capability // 10 and n <= capability]
    if fitting:
        return f"runs the kernels built for sm_{max(fitting)}"
    intermediate = [int(word.removeprefix("ptx")) for word in words if word.startswith("ptx")]
    if fitting := [n for n in intermediate if n <= capability]:
        return f"runs the kernels by PTX of sm_{max(fitting)}, compiled at their first use"
    return (
        f"NOT usable: the kernels were built for sm_{', sm_'.join(map(str, codes))}; build with "
        f'DIFFREG_CUDA_ARCHITECTURES="{capability}" and an nvcc that knows it (docs/cuda.md)'
    )
