"""argparse, with its errors in our one line, and the nearest word where one is misspelt."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_NEAR = 0.5  # of difflib's ratio, as for keys of settings
_NEARER = 0.7  # where it is one word of several


class Parser(argparse.ArgumentParser):
    """A command's options, in full: `--iter` might be another option in the next version."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse has it; a misspelt word is told before what is missing without it."""
        if args is not None:
            self._check_spelling(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"diffreg: error: {message} (see {self.prog} --help)\n")

    def _check_spelling(self, words: Sequence[str]) -> None:
        commands = self._commands()
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in words:
            option = word.partition("=")[0]
            if word == "--":
                return
            if option.startswith("--") and option not in known and (near := nearest(option, known)):
                self.error(f"there is no option {option}; the nearest is {near}")
            if commands and not word.startswith("-"):
                if word not in commands:
                    near = nearest(word, commands)
                    told = f"the nearest is {near}" if near else f"known are {', '.join(commands)}"
                    self.error(f"there is no command {word}; {told}")
                return

    def _commands(self) -> list[str]:
        actions = self._subparsers._group_actions if self._subparsers else []
        return [name for action in actions for name in action.choices or ()]


def nearest(word: str, known: Iterable[str]) -> str:
    """What was probably meant: what begins so, has such a word, or is spelt alike; "": nothing.

    Example:
        >>> from diffreg.cli.spelling import nearest
        >>> known = ("--iterations", "--fixed-label")
        >>> [nearest(word, known) for word in ("--it", "--iteratoins", "--lables")]
        ['--iterations', '--iterations', '--fixed-label']
    """
    whole = {name.lstrip("-"): name for name in known}
    bare = word.lstrip("-")
    parts = {part: name for name in whole for part in name.split("-") if len(part) > 3}
    begun = [name for name in whole if name.startswith(bare)]
    alike = [parts[part] for part in difflib.get_close_matches(bare, parts, 1, _NEARER)]
    alike += difflib.get_close_matches(bare, whole, 1, _NEAR)
    return next((whole[name] for name in begun + alike), "")
