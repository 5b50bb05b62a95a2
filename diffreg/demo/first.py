"""The demo's first stage: two heads registered as volumes, and their report."""

from __future__ import annotations

import time
from pathlib import Path

from diffreg.demo.raw import FIXED, MOVING, write_raw_heads
from diffreg.demo.report import CREDITS
from diffreg.registration import register, write_registration
from diffreg.registration.folders import REPORT
from diffreg.registration.pair_page import view
from diffreg.report.figures import readme_picture

FOLDER, RAW, PICTURE = "first", "heads", "picture.png"
PAIR = MOVING, FIXED


def show_first(out: Path) -> Path:
    """Register one shipped head onto the other as `diffreg register` does; say where it shows.

    Args:
        out: the folder of the demo's results; this one's are in a folder `first` in it, its picture
            is picture.png, and a folder `heads` holds two raw files to try.

    Returns:
        The report's file.

    Raises:
        ValueError: the folder cannot be written to.

    Example: `show_first(Path("demo"))`
    """
    start = time.perf_counter()
    result = write_registration(register(*PAIR), out / FOLDER, credits=CREDITS)
    readme_picture(out / PICTURE, view(result, "Colin27 to MNI152", {}))
    report, raw = out / FOLDER / REPORT, write_raw_heads(out / RAW)
    print(*result.how, result.verdict, sep="\n")
    print(f"Report: {report} ({time.perf_counter() - start:.1f} s)")
    print(
        f"The same heads as from two scanners, one turned by 20 degrees and shifted by 25 mm:\n"
        f"  diffreg register {raw[0]} {raw[1]} -o {out / 'turned'}",
        flush=True,
    )
    return report
