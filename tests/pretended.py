"""A GPU as a CPU can stand for one: tensors that say they are on "cuda", told apart from the CPU's.

Each holds a tensor of the CPU, with which all is computed, and is of the device "meta" to torch's
C++ parts. An operator that is given tensors of both devices refuses them, as on a GPU; what a GPU
is waited for is written down.
"""

from contextlib import contextmanager, nullcontext

import torch
from cases import WAITING
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from diffreg.ops import _checks

GPU = torch.device("cuda", 0)
META = torch.device("meta")
WAITS: list[str] = []
# Whose indices may be on the host, which then sends them.
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class OnGpu(Tensor):
    """A tensor "on the GPU"; `inner` has its numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGpu":
        like = {"strides": inner.stride(), "dtype": inner.dtype, "device": META}
        found = Tensor._make_wrapper_subclass(cls, inner.shape, **like)
        found.inner = inner
        return found

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self):
        WAITS.append("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})


class _Operators(TorchDispatchMode):
    """Those that make tensors, too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """A device by its name; and numbers of the host that become a tensor, which C++ would send."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in ("device", "get_device_module"):
            return function(*args, **kwargs)
        own = function is Tensor.new_tensor and isinstance(args[0], OnGpu)
        there = function in (torch.tensor, torch.as_tensor) and _is_gpu(kwargs.get("device"))
        if own or (there and not isinstance(args[0], OnGpu)):
            WAITS.append(function.__name__)
            dtype = kwargs.get("dtype") or (args[0].dtype if own else None)
            return OnGpu(torch.tensor(args[int(own)], dtype=dtype, device="cpu"))
        if function in (Tensor.__getitem__, Tensor.__setitem__):  # C++ sends lists, too
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(p) if isinstance(p, list) else p for p in places)
            args = (args[0], places, *args[2:])
        return function(*tree_map(_as_meta, args), **tree_map(_as_meta, kwargs))


def _is_gpu(device) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")


def _as_meta(value):
    named = isinstance(value, str) and value.partition(":")[0] == "cuda"
    return META if named or (isinstance(value, torch.device) and value.type == "cuda") else value


def _inner(values):
    return tree_map(lambda value: value.inner if isinstance(value, OnGpu) else value, values)


def _computed(function, args, kwargs):
    """What the CPU makes of it, on the device that a GPU would have it on."""
    name, kwargs = function._schema.name, dict(kwargs)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, OnGpu)]
    assert all(t.is_cpu for t in tensors if not isinstance(t, OnGpu)), f"{name}: numbers are lost"
    asked = kwargs.get("device")
    on_gpu = bool(there) if asked is None else _is_gpu(asked)
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    if name in ("aten::_to_copy", "aten::copy_"):
        across = on_gpu != bool(there) or 0 < len(there) < len(tensors)
        if across and not (kwargs.get("non_blocking") or args[2:3] == (True,)):
            WAITS.append(name)
    elif there:
        _check_devices(function, name, there, tensors)
    value = function(*_inner(args), **_inner(kwargs))
    if name == "aten::copy_":
        return args[0]
    if not on_gpu:
        return value
    given = {id(t.inner): t for t in there}  # what is changed in place is itself
    return tree_map(lambda v: given.get(id(v), OnGpu(v)) if isinstance(v, Tensor) else v, value)


def _check_devices(function, name, there, tensors) -> None:
    indices = tensors[1:] if name.startswith(INDEXED) else []
    sent = [t for t in indices if not isinstance(t, OnGpu)]
    by_mask = any(t.dtype == torch.bool for t in indices)
    if name in WAITING or sent or by_mask:
        WAITS.append(name)
    # Numbers go along as a kernel's arguments; so do the edge scales of our own, one for all.
    most = 1 if function.namespace == "diffreg" else 0
    left = [t for t in tensors if not isinstance(t, OnGpu) and t.ndim > most]
    if left and not sent:
        shapes = [list(t.shape) for t in left]
        raise RuntimeError(f"{name}: tensors of the CPU, {shapes}, beside such of cuda:0")


class _Stream:
    """Everything has ended at once."""

    def __init__(self, *args):
        pass

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        pass

    def record_event(self):
        return None


@contextmanager
def a_gpu(patch):
    """Inside, torch sees a GPU, whose tensors are `OnGpu`; WAITS begins anew.

    Args:
        patch: pytest's monkeypatch.
    """
    generator = torch.default_generator
    for name, value in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "a GPU",
        "Stream": _Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: _Stream(),
        "device": lambda device: nullcontext(),
        "mem_get_info": lambda device=None: (2**33, 2**33),
        "max_memory_allocated": lambda device=None: 0,
        "manual_seed": lambda seed: generator.manual_seed(seed),
        "get_rng_state": lambda device=None: generator.get_state(),
        "set_rng_state": lambda state, device=None: None,
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(Tensor, "pin_memory", lambda self: self)
    patch.setattr(_checks, "_CUDA_BUILT", True)
    patch.setattr(_checks, "READS_HALVES", ())
    WAITS.clear()
    with _Operators(), _Functions():
        yield
