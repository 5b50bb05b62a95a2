"""GPUs on which the kernels run, and those on which they do not: what is said, and what is used."""

import warnings

import numpy as np
import pytest
import torch

from diffreg.cli.info import description
from diffreg.ops import _core, _gpus
from diffreg.ops._gpus import Machine
from diffreg.registration.devices import device_named
from diffreg.system.files import FileWarning
from diffreg.training.ranks import single
from diffreg.transforms import resample

CORE = {"cuda_architectures": "75 80 90 ptx90", "cuda_runtime": "13.0"}


@pytest.mark.parametrize(
    "machine, core, said",
    [
        (Machine(), {}, "not used, torch is a CPU build"),
        (Machine((), None, "13.0"), {}, "not used, there is no driver"),
        (Machine((), 13000, "13.0"), {}, "not used, torch finds none"),
        (
            Machine((), 12040, "13.0"),
            {},
            "the driver runs CUDA 12.4, and torch was built with 13.0",
        ),
        (Machine([("A", 90)], 13000, "13.0"), {}, "A (sm_90), runs the kernels built for sm_90"),
        (Machine([("A", 86)], 13010, "13.0"), {}, "A (sm_86), runs the kernels built for sm_80"),
        (
            Machine([("A", 120)], 13000, "13.0"),
            {},
            "A (sm_120), runs the kernels by PTX of sm_90, compiled at their first use",
        ),
        (
            Machine([("A", 70)], 13000, "13.0"),
            {},
            "A (sm_70), NOT usable: the kernels were built for sm_75, sm_80, sm_90; build with "
            'DIFFREG_CUDA_ARCHITECTURES="70" and an nvcc that knows it',
        ),
        (
            Machine([("A", 90)], 12040, "12.4"),
            {},
            "NOT usable: the driver runs CUDA 12.4, the kernels were built with 13.0; update",
        ),
        (Machine([("A", 90)], 12040, "12.4"), {"cuda_runtime": "12.8"}, "runs the kernels built"),
        (
            Machine([("A", 90)], 13000, "13.0"),
            {"cuda_architectures": "none", "cuda_runtime": "none"},
            "A (sm_90), NOT usable: the core was built without CUDA kernels",
        ),
    ],
)
def test_what_info_says_of_gpus(machine, core, said):
    assert said in description(machine, CORE | core)[-1]


class Driver:
    """libcuda.so.1, as far as it is asked."""

    def __init__(self, version, failed=0):
        self.version, self.failed = version, failed

    def cuDriverGetVersion(self, out):
        out._obj.value = self.version
        return self.failed


@pytest.mark.parametrize(
    "library, said", [(Driver(12090), 12090), (Driver(0), None), (Driver(12090, 999), None)]
)
def test_a_cuda_build_of_torch_asks_the_driver_itself(monkeypatch, library, said):
    """Not torch, which gave its private word for it up in 2.14."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_gpus.ctypes, "CDLL", lambda name: library)
    assert _gpus.this_machine() == Machine((), said, "13.0")


def test_where_there_is_no_driver_info_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(_gpus.ctypes, "CDLL", missing)
        assert _gpus.this_machine() == Machine((), None, "13.0")


@pytest.fixture
def gpu(monkeypatch):
    """gpu(capability, driver, core): torch sees one of these, which diffreg is built for or not."""

    def present(capability, driver, core):
        machine = Machine([("A", capability)], driver, "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(_gpus, "this_machine", lambda: machine)
        monkeypatch.setattr(_gpus, "build_info", lambda: CORE | core)

    return present


@pytest.mark.parametrize(
    "capability, driver, core, why",
    [
        (90, 13000, {"cuda_architectures": "none"}, "the core was built without CUDA kernels"),
        (90, 12040, {}, "the driver runs CUDA 12.4, the kernels were built with 13.0"),
        (70, 13000, {}, "the kernels were built for sm_75, sm_80, sm_90"),
    ],
)
def test_a_gpu_without_kernels_is_left_alone(capability, driver, core, why, gpu):
    """Unless it is asked for by its name, which the operators then refuse."""
    gpu(capability, driver, core)
    for automatic in (device_named, lambda name: single(name).device):
        line = rf"GPU 0, A \(sm_{capability}\), is not used, the CPU is: {why}"
        with pytest.warns(FileWarning, match=line):
            assert automatic("auto") == torch.device("cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert automatic("cuda").type == "cuda"


@pytest.mark.parametrize("core, device", [({}, "cpu"), ({"cpu_variant": _core.PLAIN}, "cuda")])
def test_a_gpu_of_rocm_runs_plain_pytorch_alone(core, device, gpu, monkeypatch):
    gpu(90, 13000, core)
    monkeypatch.setattr(_gpus, "this_machine", Machine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileWarning)
        assert device_named("auto").type == single("auto").device.type == device


@pytest.mark.parametrize("core", [{}, {"cpu_variant": _core.PLAIN}])
def test_a_gpu_with_kernels_or_without_a_core_is_used(core, gpu):
    gpu(90, 13000, core)
    assert device_named("auto").type == single("auto").device.type == "cuda"


def test_a_gpu_that_is_not_there_is_told(gpu):
    gpu(90, 13000, {})
    square = np.zeros((4, 4))
    for named in (device_named, lambda name: resample(square, square, device=name)):
        for name in ("cuda:1", torch.device("cuda", 7)):
            with pytest.raises(ValueError, match=f"device {name} is not there: torch sees one GPU"):
                named(name)
        for name in ("gpu", "meta"):
            with pytest.raises(ValueError, match=f"device must be cpu.* cuda.*, got '{name}'"):
                named(name)
    assert device_named("cuda:0") == device_named("cuda") == torch.device("cuda", 0)
