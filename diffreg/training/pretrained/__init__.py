"""Networks that come with the package, each with a card: data, licence, split, figures, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffreg.training.checkpoint import load_network

FOLDER = Path(__file__).parent


def pretrained_networks() -> list[str]:
    """Names of the networks that come with the package.

    Example:
        >>> from diffreg.training.pretrained import pretrained_networks
        >>> pretrained_networks()
        ['lunet-any', 'lunet-any-2d', 'lunet-cardiac-mr', 'lunet-mr-ct']
    """
    return sorted(path.stem for path in FOLDER.glob("*.pt"))


def checkpoint_path(name: str | Path) -> Path:
    """The file of a checkpoint: of this path, or of a network that comes with the package.

    Args:
        name: a file, which comes first, or one of `pretrained_networks()`.

    Raises:
        FileNotFoundError: it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if str(name) in pretrained_networks():
        return FOLDER / f"{name}.pt"
    if path.exists():
        return path  # whoever reads it says what it is
    raise FileNotFoundError(
        f"{name} does not exist, and is none of the networks that come with diffreg: "
        f"{', '.join(pretrained_networks())}"
    )


def load_pretrained(name: str) -> dict[str, Any]:
    """A network that comes with the package, with the settings that it was trained with.

    Args:
        name: one of `pretrained_networks()`; its card stands beside it, `model_card(name)`.

    Returns:
        network, normalization, objective, similarity, trained_on and contrast_free, as
        `diffreg.registration.register` takes them.

    Raises:
        ValueError: a name that is not known.

    Example:
        >>> from diffreg.training.pretrained import load_pretrained
        >>> load_pretrained("lunet-cardiac-mr")["similarity"]
        'ncc+lncc'
    """
    return load_network(FOLDER / f"{_known(name)}.pt")


def model_card(name: str) -> str:
    """The card of a network, Markdown.

    Args:
        name: one of `pretrained_networks()`.

    Raises:
        ValueError: a name that is not known.

    Example:
        >>> from diffreg.training.pretrained import model_card
        >>> model_card("lunet-cardiac-mr").splitlines()[0]
        '# lunet-cardiac-mr'
    """
    return (FOLDER / f"{_known(name)}.md").read_text(encoding="utf-8")


def _known(name: str) -> str:
    if name not in pretrained_networks():
        known = ", ".join(pretrained_networks())
        raise ValueError(f"name must be one of {known}, got {name!r}")
    return name
