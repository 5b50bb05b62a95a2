"""A CUDA graph as a CPU can have one: what a function calls, run again on the memory it had then.

Nothing of Python is run again, as in a graph; and before each run what the function made is no
number, so that whoever reads what no run wrote is seen.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """In the place of `diffreg.training.graphs.captured`: gives what runs a function again.

    Attributes:
        captures, replays: how many there were.
    """

    def __init__(self):
        super().__init__()
        self.captures, self.replays = 0, 0

    def __call__(self, function, pool):
        self.captures += 1
        self.calls, self.made, self.kept = [], {}, {}
        random = torch.get_rng_state()
        with torch.autograd.set_multithreading_enabled(False), self:
            left = function()
        for storage, before in self.kept.values():  # a capture computes nothing
            storage.copy_(before)
        torch.set_rng_state(random)
        calls, made = self.calls, list(self.made.values())

        def replay():
            self.replays += 1
            for storage in made:
                _spoil(storage)
            with torch.no_grad():
                for function, args, kwargs, results in calls:
                    _again(function, args, kwargs, results)

        return replay, left

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for tensor in given:  # batch statistics change in an operator that does not say so
            self._keep(tensor.untyped_storage())
        value = function(*args, **kwargs)
        results = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
        known = {t.untyped_storage().data_ptr() for t in given}
        for tensor in results:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                self.made[storage.data_ptr()] = storage
        self.calls.append((function, args, kwargs, results))
        return value

    def _keep(self, storage):
        """What stood there before the function."""
        where = storage.data_ptr()
        if where not in self.made and where not in self.kept:
            self.kept[where] = storage, storage.clone()


def _again(function, args, kwargs, results):
    """A call, whose results are put where they were."""
    given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _is(t)}
    value = function(*args, **kwargs)
    for old, new in zip(results, filter(_is, tree_leaves(value)), strict=True):
        if old.untyped_storage().data_ptr() not in given:  # else a view, or changed in place
            old.copy_(new)


def _is(value):
    return isinstance(value, Tensor)


def _spoil(storage):
    """Bytes that are no number in any floating type, and large ones in others."""
    torch.empty(0, dtype=torch.uint8).set_(storage).fill_(0xFF)
