"""The demo's first stage: two raw heads registered as volumes, and their report."""

from __future__ import annotations

import time
from pathlib import Path

from diffreg.demo.raw import write_raw_heads
from diffreg.demo.report import CREDITS
from diffreg.registration import register, write_registration
from diffreg.registration.folders import REPORT
from diffreg.registration.pair_page import view
from diffreg.report.figures import readme_picture

FOLDER, RAW, PICTURE = "first", "heads", "picture.png"


def show_first(out: Path) -> Path:
    """Register two raw heads as `diffreg register` does, and say where it shows.

    Args:
        out: the folder of the demo's results; this one's are in a folder `first` in it, its picture
            is picture.png, and the two files that it read are in a folder `heads`.

    Returns:
        The report's file.

    Raises:
        ValueError: the folder cannot be written to.

    Example: `show_first(Path("demo"))`
    """
    start = time.perf_counter()
    moving, fixed = write_raw_heads(out / RAW)
    print(f"diffreg register {moving} {fixed} -o {out / FOLDER}", flush=True)
    found = register(moving, fixed)
    result = write_registration(found, out / FOLDER, credits=CREDITS, composites=False)
    readme_picture(out / PICTURE, view(result, "Colin27 to MNI152", {}))
    report = out / FOLDER / REPORT
    seconds = time.perf_counter() - start
    print(*result.how, result.verdict, f"Report: {report} ({seconds:.1f} s)", sep="\n", flush=True)
    return report
