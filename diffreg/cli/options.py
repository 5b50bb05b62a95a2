"""What several commands make of their options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffreg.cli.variational import in_words
from diffreg.system.extras import require
from diffreg.system.ranks import ALONE, Rank

if TYPE_CHECKING:
    from diffreg.data.normalization import Normalization


def say_method(options: argparse.Namespace) -> None:
    """A line where nothing was said about the method."""
    if options.method is None and options.checkpoint is None:
        line = f"no --checkpoint: the variational method with {in_words(options)}"
        print(line, file=sys.stderr)


def find_modules_in(folder: Path) -> None:
    """Modules of the user's own may stand there, alone: packages come first."""
    sys.path.append(str(folder.absolute()))


def require_writers(page: bool = True) -> None:
    """Ask for what writes the results before the long work that they come of.

    Args:
        page: whether report.html is among them.

    Raises:
        ImportError: a package is not installed.
    """
    require("nibabel", "NIfTI files")
    if page:
        require("matplotlib", "report.html")


def network_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `register` that come with a checkpoint; none for the variational method."""
    if options.method == "network" and options.checkpoint is None:
        raise ValueError("--method network needs --checkpoint, the network to use")
    if options.method == "variational" and options.checkpoint is not None:
        raise ValueError("--method variational uses no --checkpoint; leave one of them out")
    if options.refine < 0:
        raise ValueError(f"--refine must be at least 0, got {options.refine}")
    if options.refine and options.checkpoint is None:
        raise ValueError("--refine needs --checkpoint, the network that it starts from")
    if options.trust and options.checkpoint is None:
        raise ValueError("--trust is of a --checkpoint, whose own parts are then imported")
    if options.checkpoint is None:
        return {}
    from diffreg.training.pretrained import checkpoint_path

    path = checkpoint_path(options.checkpoint)
    from diffreg.registration.devices import device_named
    from diffreg.training.checkpoint import load_network

    if options.trust:
        find_modules_in(Path())
    found = load_network(path, trust=True) if options.trust else load_network(path)
    return {**found, "network": found["network"].to(device_named(options.device))}


def affine_of_run(options: argparse.Namespace, rank: Rank) -> str:
    """What a checkpoint's run did is what its network is measured with, where nothing is said."""
    from diffreg.training.checkpoint import affine_of
    from diffreg.training.pretrained import checkpoint_path

    if options.checkpoint is None:
        return "auto"
    found = affine_of(checkpoint_path(options.checkpoint))
    if found is not None and rank.first:
        print(f"affine start: {found}, as in training (data.affine)", file=sys.stderr)
    return found or "auto"


def normalization_of(options: argparse.Namespace, trained: Mapping[str, Any]) -> Normalization:
    """A network's own, or the default percentiles; the intensities of --window in place of both."""
    from diffreg.data.normalization import Normalization

    found: Normalization = trained.get("normalization") or Normalization()
    if options.window is None:
        return found
    return replace(found, window=(options.window[0], options.window[1]))


@contextmanager
def progress_bar(title: str, rank: Rank = ALONE) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, called with (done, at most); silent where stderr is no terminal.

    Of several ranks the first one shows its own.
    """
    tqdm = require("tqdm", "progress bars")
    hidden = None if rank.first else True
    with tqdm.tqdm(desc=rank.said(title), disable=hidden, leave=False) as bar:

        def show(done: int, at_most: int) -> None:
            bar.total = at_most
            bar.update(done - bar.n)

        yield show
