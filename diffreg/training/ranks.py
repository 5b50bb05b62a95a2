"""The processes of one training run, as torchrun starts them; a run alone is one rank of one.

Each rank computes its share of every batch; the gradients are summed by DistributedDataParallel so
that all ranks take the step that one process would take on the whole batch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn

from diffreg.ops._gpus import usable
from diffreg.system.ranks import cuda_device, this_rank


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Args:
        rank: its number.
        count: how many there are.
        device: where it computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.rank == 0

    def share(self, numbers: Sequence[int]) -> Sequence[int]:
        """The part of a batch that is this rank's; the parts differ by one at most."""
        size = len(numbers)
        return numbers[size * self.rank // self.count : size * (self.rank + 1) // self.count]

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network, whose gradients are then those of all ranks' mean."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def apart(self, network: nn.Module, alone: bool) -> AbstractContextManager[None]:
        """Within, gradients of the wrapped network stay this rank's own: more are to come."""
        if alone and isinstance(network, nn.parallel.DistributedDataParallel):
            found: AbstractContextManager[None] = network.no_sync()
            return found
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, on every one of them."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def smallest(self, values: Tensor) -> Tensor:
        """The smallest over the ranks, on every one of them."""
        if self.count > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MIN)
        return values


def single(device: str = "auto") -> Ranks:
    """A run of one process, on "cpu", "cuda", or "auto": a GPU on which the kernels run."""
    return Ranks(device=torch.device(_kind(device)))


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """This process's place in the run, from what torchrun put into the environment.

    Args:
        device: "cpu", "cuda", or "auto": GPUs where there are some on which the kernels run.

    Yields:
        The ranks; they speak gloo on CPUs and nccl on GPUs.

    Raises:
        ConnectionError: another rank ended, or cannot be reached.
        ValueError: "cuda" where there is no GPU, or fewer GPUs than ranks on this machine; or what
            is in the environment is no rank.

    Example:
        >>> from diffreg.training.ranks import joined
        >>> with joined("cpu") as ranks:
        ...     ranks.count
        1
    """
    rank = this_rank()
    count, local = rank.count, rank.local
    if count == 1:
        yield single(device)
        return
    kind = _kind(device)
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs for {local + 1} or more processes: give "
            "torchrun --nproc-per-node at most as many, or training.device=cpu"
        )
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    with _telling_of_others():
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
        yield from _in_group(kind, local, count, place)


def _in_group(kind: str, local: int, count: int, place: torch.device) -> Iterator[Ranks]:
    """The ranks of a group that is there; it ends with them."""
    try:
        yield Ranks(distributed.get_rank(), count, place)
        # gloo's threads still let go of the last sums, which are Python's: one that does so while
        # the interpreter ends aborts the process. So all wait for the slowest, and the group ends
        # its threads here, once the cycles within DistributedDataParallel no longer hold it.
        distributed.barrier(device_ids=[local] if kind == "cuda" else None)
    except BaseException:
        # Who ends a group of nccl waits for the other ranks, and these for what this one was to
        # sum. It ends with the process, and torchrun ends the others.
        if kind != "cuda":
            _leave()
        raise
    _leave()


@contextmanager
def _telling_of_others() -> Iterator[None]:
    """That another process ended, or cannot be reached, is one line; its own lines say why."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConnectionError(
            "another process of the run ended, or cannot be reached, and this one with it: go on "
            f"with --resume ({reason:.200})"
        ) from error


def _leave() -> None:
    distributed.destroy_process_group()
    gc.collect()


def _kind(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("training.device is cuda, but torch finds no GPU here")
    if device == "auto":
        there = torch.cuda.is_available() and usable(cuda_device(this_rank()).index)
        return "cuda" if there else "cpu"
    return device
