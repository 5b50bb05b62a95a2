"""What is drawn step by step, and read ahead of the steps by torch's DataLoader."""

from __future__ import annotations

import errno
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from diffreg.system.signals import ENDING

Share = Callable[[Sequence[int]], Sequence[int]]
Steps = Callable[[], Iterator[Sequence[int]]]
_Read = TypeVar("_Read")


class Ahead:
    """The batches of the steps, one after the other; asked for another step it begins there.

    Args:
        size: draws a step, of all processes together.
        share: which of a step's draws this process takes; None: all.
        workers: processes that read; 0: this one.
        data: what is read, and the DataLoader's other options, given the draws of each step.
    """

    def __init__(
        self,
        size: int,
        share: Share | None,
        workers: int,
        data: Callable[[Steps], tuple[Any, dict[str, Any]]],
    ) -> None:
        self.size, self.share, self.workers, self.data = size, share or _all, workers, data
        self._batches: Iterator[Any] | None = None
        self._step = 0  # whose batch comes next

    def are_a_step(self, numbers: Sequence[int]) -> bool:
        """Whether these draws are all that this process takes in a step."""
        start = numbers[0] - numbers[0] % self.size
        return list(numbers) == list(self.share(range(start, start + self.size)))

    def next(self, numbers: Sequence[int], pinned: bool) -> Any:
        """The batch of a step; those of the steps that follow are made ready.

        Args:
            numbers: of its draws.
            pinned: in memory that a GPU copies from while the host goes on.

        Raises:
            Exception: what the DataLoader gave in place of a batch.
            OSError: of `telling_of_workers`.
        """
        step = numbers[0] // self.size
        try:
            with telling_of_workers(self.workers):
                if self._batches is None or step != self._step:
                    self._batches = iter(self._loader(step, pinned))
                found = next(self._batches)
        except OSError:
            self.close()
            raise
        if isinstance(found, Exception):
            self.close()
            raise found from found.__cause__ or getattr(found, "trace", None)
        self._step = step + 1
        return found

    def close(self) -> None:
        """End the workers; the next batch begins anew."""
        self._batches = None

    def _loader(self, step: int, pinned: bool) -> DataLoader[Any]:
        dataset, options = self.data(partial(_steps, step, self.size, self.share))
        if self.workers:
            _allow_files()
        return DataLoader(
            dataset,
            collate_fn=partial(_handed_on, options.pop("collate_fn", _same)),
            num_workers=self.workers,
            worker_init_fn=_heed_second_signal,
            pin_memory=pinned,
            generator=torch.Generator(),  # torch's own stays as it was
            **options,
        )


@contextmanager
def telling_of_workers(workers: int) -> Iterator[None]:
    """What befalls the processes that read ahead is an OSError in words.

    torch raises it wherever this process is just then: what is around all of the steps needs this.

    Args:
        workers: how many there are.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            raise ChildProcessError(
                "a process that reads ahead was killed, perhaps for want of memory, of /dev/shm "
                "too: go on with --resume and fewer data.workers"
            ) from error
        if _OPEN in str(error):
            raise _too_many_files() from error
        raise
    except OSError as error:
        if not workers or error.errno not in _UNSTARTED or error.filename is not None:
            raise
        if error.errno == errno.EMFILE:
            raise _too_many_files() from error
        raise ChildProcessError(
            f"{workers} processes that read ahead could not be started, "
            f"{str(error.strerror).lower()}: set fewer data.workers"
        ) from error


_OPEN = "Too many open files"
_UNSTARTED = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


def _too_many_files() -> OSError:
    return OSError(
        "too many open files: each array that data.workers hand on is one; allow more (ulimit -n), "
        "or set fewer data.workers"
    )


def _allow_files() -> None:
    """This process and its workers may open as many files as the system lets them ask for."""
    try:
        import resource
    except ImportError:  # of another system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


_FILES = 2**16  # more than any batches have arrays


def _heed_second_signal(_: int) -> None:
    """In a worker: what a queue or a terminal sends to all processes is for the one that takes the
    steps, which ends the workers when it has what it needs of them."""

    def once(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, once)


def _same(found: Any) -> Any:
    return found


def _handed_on(collate: Callable[[Any], Any], read: Any) -> Any:
    """What a process that reads gives of a step, its tensors in memory that processes share.

    Where that is full torch's queue would lose the batch, and the steps would wait for it for ever.
    """
    found = collate(read)
    if get_worker_info() is None:
        return found
    try:
        for tensor in _tensors(found):
            tensor.share_memory_()
    except RuntimeError as error:
        if _OPEN in str(error):
            return traced(_too_many_files())
        return traced(
            OSError(
                f"data.workers hand on what they read in shared memory, /dev/shm, and could not "
                f"({error}): make it larger (docker run --shm-size=8g), or set data.workers = 0"
            )
        )
    return found


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for part in found:
            yield from _tensors(part)


class WorkerTrace(Exception):
    """The trace of an error of another process, as text: the cause of the one that is raised."""

    def __str__(self) -> str:
        return f"in a process that reads ahead:\n\n{self.args[0]}"


def traced(error: Exception) -> Exception:
    """An error as a worker gives it: pickled it loses its trace and its cause, but for text."""
    if get_worker_info() is not None:
        vars(error)["trace"] = WorkerTrace("".join(traceback.format_exception(error)))
    return error


def all_or_error(read: Sequence[_Read | Exception]) -> list[_Read] | Exception:
    """All that was read for a step, or what is wrong with the first that could not be."""
    found: list[_Read] = []
    for one in read:
        if isinstance(one, Exception):
            return one
        found.append(one)
    return found


class Sampler:
    """What a dataset is asked for, step by step, given what it is asked by the number of a draw."""

    def __init__(self, steps: Steps, asked: Callable[[int], Any]) -> None:
        self.steps, self.asked = steps, asked

    def __iter__(self) -> Iterator[list[Any]]:
        for numbers in self.steps():
            yield list(map(self.asked, numbers))


def _all(numbers: Sequence[int]) -> Sequence[int]:
    return numbers


def _steps(step: int, size: int, share: Share) -> Iterator[Sequence[int]]:
    """The draws of each step from one on, without end."""
    return (share(range(k * size, (k + 1) * size)) for k in count(step))
