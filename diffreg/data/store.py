"""Tensors that are made once and found again by what they are made of: in memory, or in a folder.

Both have `get(key)`, which gives MISSING where nothing is kept, and `put(key, value)`, which gives
what is kept. A key is a tuple of plain values; a value may be None.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch

from diffreg.data._kinds import file_of
from diffreg.system.atomic import remove_leftovers, replacing
from diffreg.system.ranks import this_rank

MISSING: Any = object()
# Headers whose numbers are in another file of that name.
_DETACHED = (".hdr", ".img", ".mhd", ".nhdr")


class Held:
    """In memory: the values that were used last, as many as fit.

    Args:
        most: bytes.

    Example:
        >>> import torch
        >>> from diffreg.data.store import MISSING, Held
        >>> held = Held(100)
        >>> _ = [held.put((k,), torch.zeros(16)) for k in range(2)]
        >>> held.get((0,)) is MISSING, held.get((1,)).shape
        (True, torch.Size([16]))
    """

    def __init__(self, most: float) -> None:
        self.most, self._size = most, 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._alike: WeakValueDictionary[Any, Any] = WeakValueDictionary()

    def __reduce__(self) -> Any:
        return Held, (self.most,)  # another process begins with none

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any) -> Any:
        if key not in self._values:
            return MISSING
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Any, value: Any, image: Any = None) -> Any:
        """Keep a value; of the values of one image those that are equal are held once."""
        cost = 0 if value is None else value.data.nbytes
        if image is not None and value is not None:
            alike = self._alike.setdefault(image, value)
            if alike is not value and torch.equal(alike, value):
                value, cost = alike, 0
        self._values[key] = value, cost
        self._size += cost
        while self._size > self.most and len(self._values) > 1:
            self._size -= self._values.popitem(last=False)[1][1]
        return value


class Kept:
    """In a folder: a .npy file for each value, mapped into memory while it is used.

    Args:
        folder: made where it does not exist; its files appear whole or not at all.
        about: what all keys have in common, such as settings.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, about: str = "") -> None:
        self.folder, self.about = Path(folder), about
        self.folder.mkdir(parents=True, exist_ok=True)
        if this_rank().alone:  # one of another machine may be at work on a file
            remove_leftovers(self.folder)

    def get(self, key: Any) -> Any:
        try:
            array = np.load(self._path(key), mmap_mode="c")
        except (FileNotFoundError, EOFError, ValueError):
            return MISSING  # ValueError: a file that a computer which went down left empty
        return torch.from_numpy(array) if array.ndim else None

    def put(self, key: Any, value: Any, image: Any = None) -> Any:
        array = np.zeros(()) if value is None else value.contiguous().numpy()
        with replacing(self._path(key)) as temporary, temporary.open("wb") as file:
            # Not to a file as such: numpy then says of a full disk how much it wrote, not why.
            through = SimpleNamespace(write=file.write)
            np.lib.format.write_array(through, array, allow_pickle=False)
        return self.get(key)

    def _path(self, key: Any) -> Path:
        digest = hashlib.sha256(repr((self.about, key)).encode())
        return self.folder / f"{digest.hexdigest()[:40]}.npy"


class Aside:
    """In memory, and for others in a folder, as far as that can be read and written.

    Args:
        folder, about: of `Kept`.

    Example: `Aside("heads/.diffreg").put(("affine", 3), torch.eye(4))`
    """

    def __init__(self, folder: str | Path, about: str = "") -> None:
        self.folder, self.about = folder, about
        self._held = Held(float("inf"))

    def get(self, key: Any) -> Any:
        found = self._held.get(key)
        if found is MISSING:
            with suppress(OSError):
                found = self._kept.get(key)
        return found

    def put(self, key: Any, value: Any, image: Any = None) -> Any:
        with suppress(OSError):  # a full disk, a folder of somebody else
            self._kept.put(key, value)
        return self._held.put(key, value)

    @cached_property
    def _kept(self) -> Kept:
        return Kept(self.folder, self.about)


def stamp(path: str | Path) -> tuple[Any, ...]:
    """What tells a file from another one, and from what it was before it changed.

    Args:
        path: of an image, as `read_image` takes it, or of another file.

    Returns:
        Its absolute name, then size and time of change of each of its files.

    Raises:
        FileNotFoundError: it is not there.
    """
    return (os.path.abspath(path), *state_of(path))


def state_of(path: str | Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file of an image, or of another file.

    Raises:
        FileNotFoundError: it is not there.
    """
    file = file_of(path)
    files = [file]
    if file.is_dir():
        files = sorted(file.iterdir())
    elif file.suffix.lower() in _DETACHED:
        files = sorted(one for one in file.parent.iterdir() if one.stem == file.stem)
    return [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
