"""The limits of a result's signs, from pairs that are well."""

from diffreg.registration.judgement import LIMITS, Agreement, Limits
from diffreg.registration.signs import INFORMATION, NCC, Signs

FACTOR = 2.0  # times what the worst good pair shows
# Of the distance from a second start, which counts only where that one is better as well.
OF_SECOND_START = 1.25


def limits_from(good: list[Signs], factor: float = FACTOR) -> Limits:
    """Those that are by definition stay; the others are `factor` times the worst."""

    def worst(values, times: float = factor) -> float:
        return _rounded(times * max(values))

    apart = (s.elsewhere.apart / s.extent for s in good if s.elsewhere)

    return LIMITS._replace(
        apart=worst(apart, OF_SECOND_START),
        moved=worst(s.moved / s.extent for s in good),
        affine=worst(s.motion.length / s.extent for s in good),
        led_out=worst(s.led_out for s in good),
        ncc=_agreement([s for s in good if s.measure == NCC], 1.0, factor),
        information=_agreement([s for s in good if s.measure == INFORMATION], 2.0, factor),
    )


def _agreement(good: list[Signs], best: float, factor: float) -> Agreement:
    """`factor` times as far from perfect, in NCC; that part as far from none, in information.

    A gain, that part of the least, is asked for below the middle between low and the worst good.
    """
    least = min(s.after for s in good)
    low = 1 - factor * (1 - least) if best == 1 else 1 + (least - 1) / factor
    gained = min(s.gained for s in good) / factor
    return Agreement(_rounded(low), _rounded((low + least) / 2), _rounded(gained))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def shown(value):
    """Numbers with four digits."""
    if isinstance(value, dict):
        return {key: shown(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
