"""The GPUs of this machine, and whether the kernels run there."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffreg.ops._core import PLAIN, build_info
from diffreg.system.files import FileWarning


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


def checked_device(name: str | torch.device, names: str = "cpu or cuda") -> torch.device:
    """A device that is there, by its name: the CPU or a GPU.

    Args:
        name: as torch.device takes it.
        names: what messages say that it must be.

    Raises:
        ValueError: it is none of these, or torch sees no such GPU.

    Example:
        >>> from diffreg.ops._gpus import checked_device
        >>> checked_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be {names}, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be {names}, got {name!r}")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError("device cuda needs a GPU that torch sees; there is none here")
    if device.index is not None and device.index >= (count := torch.cuda.device_count()):
        seen = "one GPU" if count == 1 else f"{count} GPUs"
        raise ValueError(f"device {device} is not there: torch sees {seen}, numbered from 0")
    return device


def usable(index: int) -> bool:
    """Whether operators run on a GPU that torch sees, where nobody has said where to compute.

    Warns:
        FileWarning: they do not; why, and what would help.
    """
    core, machine = build_info(), this_machine()
    if core.get("cpu_variant") == PLAIN:
        return True
    if not machine.gpus:  # torch calls those of ROCm CUDA, too
        name, runs, words = f"GPU {index}", False, "the kernels are CUDA's, and torch is not"
    else:
        model, capability = machine.gpus[index]
        name = f"GPU {index}, {model} (sm_{capability}),"
        runs, words = verdict(capability, machine.driver, core)
    if not runs:
        warnings.warn(f"{name} is not used, the CPU is: {words}", FileWarning, stacklevel=3)
    return runs


def verdict(capability: int, driver: int | None, core: dict[str, str]) -> tuple[bool, str]:
    """Whether a GPU runs the operators, and by what, or why not.

    Args:
        capability: as in sm_90: 90.
        driver: as `Machine` has it.
        core: what `build_info` says.

    Example:
        >>> from diffreg.ops._gpus import verdict
        >>> verdict(90, 13000, {"cuda_architectures": "80 90 ptx90", "cuda_runtime": "13.0"})
        (True, 'runs the kernels built for sm_90')
    """
    if core.get("cpu_variant") == PLAIN:
        return True, "runs plain PyTorch"
    if core["cuda_architectures"] == "none":
        return False, (
            "the core was built without CUDA kernels; build it with DIFFREG_CUDA=auto where there "
            "is an nvcc (docs/cuda.md)"
        )
    needed = core["cuda_runtime"]
    if driver is not None and (found := too_old(driver, needed)):
        return False, (
            f"the driver runs CUDA {found}, the kernels were built with {needed}; update the "
            f"driver, or build with an nvcc of CUDA {found} (docs/cuda.md)"
        )
    return _fit(capability, core["cuda_architectures"])


def too_old(driver: int, needed: str) -> str | None:
    """The CUDA that a driver runs, where that is of a major version before the one needed."""
    older = driver // 1000 < int(needed.split(".")[0])
    return f"{driver // 1000}.{driver % 1000 // 10}" if older else None


def _fit(capability: int, architectures: str) -> tuple[bool, str]:
    """Which of the architectures, "80 90 ptx90", a GPU of this capability runs."""
    words = architectures.split()
    # Machine code runs on its own major version from its minor version on, PTX on all that follow.
    codes = [int(word) for word in words if word.isdigit()]
    fitting = [n for n in codes if n // 10 == capability // 10 and n <= capability]
    if fitting:
        return True, f"runs the kernels built for sm_{max(fitting)}"
    intermediate = [int(word.removeprefix("ptx")) for word in words if word.startswith("ptx")]
    if fitting := [n for n in intermediate if n <= capability]:
        return True, f"runs the kernels by PTX of sm_{max(fitting)}, compiled at their first use"
    return False, (
        f"the kernels were built for sm_{', sm_'.join(map(str, codes))}; build with "
        f'DIFFREG_CUDA_ARCHITECTURES="{capability}" and an nvcc that knows it (docs/cuda.md)'
    )
