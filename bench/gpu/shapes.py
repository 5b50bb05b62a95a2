"""Where and on what: the GPU and its sizes, or in a dry run the CPU and tiny ones."""

import sys

Shape = tuple[int, ...]
IMAGES, SMALL, ONE = (16, 1, 2048, 2048), (16, 1, 256, 256), (1, 1, 256, 256)
VOLUME = (1, 1, 160, 192, 224)
SHAPES = (IMAGES, SMALL, ONE, VOLUME)
DRY_IMAGE, DRY_VOLUME = (2, 1, 12, 10), (1, 1, 9, 10, 11)


def is_dry() -> bool:
    return "--dry-run" in sys.argv


def device() -> str:
    return "cpu" if is_dry() else "cuda"


def shapes(*wanted: Shape) -> tuple[Shape, ...]:
    """Those, or small ones of the same dimensions."""
    if not is_dry():
        return wanted
    return tuple(dict.fromkeys(DRY_VOLUME if len(s) == 5 else DRY_IMAGE for s in wanted))
