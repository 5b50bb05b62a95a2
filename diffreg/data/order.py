"""The order of an epoch: a shuffle that is a function of seed and epoch, asked for place by place.

Beyond a million no list is made: four rounds of a Feistel network permute the numbers of 2h bits,
(l, r) -> (r, l ^ f(r)), and a number that is too large is permuted again.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LISTED = 2**20
_WORD = 2**64 - 1


def shuffled(seed: int, epoch: int, place: int, count: int) -> int:
    """Which of `count` things comes at a place of an epoch.

    Args:
        seed: of the run.
        epoch: each has an order of its own.
        place: 0 ... count - 1, each of which gives another number.
        count: how many there are.

    Example:
        >>> from diffreg.data.order import shuffled
        >>> sorted(shuffled(0, 3, place, 5) for place in range(5))
        [0, 1, 2, 3, 4]
    """
    if count <= LISTED:
        return int(permutation(seed, epoch, count)[place])
    half = (count.bit_length() + 1) // 2
    keys = _keys(seed, epoch)
    number = place
    while True:
        number = _permuted(number, half, keys)
        if number < count:
            return number


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The whole order of an epoch, held until another one is asked for."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@lru_cache(maxsize=2)
def _keys(seed: int, epoch: int) -> list[int]:
    keys: list[int] = np.random.SeedSequence([seed, epoch]).generate_state(4, np.uint64).tolist()
    return keys


def _permuted(number: int, half: int, keys: list[int]) -> int:
    """One to one on the numbers of 2 * half bits."""
    left, right = number >> half, number & ((1 << half) - 1)
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) >> (64 - half))
    return left << half | right


def _mixed(number: int) -> int:
    """A number of 64 bits each of which depends on all of the given one's (splitmix64)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _WORD
    return number ^ number >> 31
