"""The demo's first stage: a registration and its report within seconds, before any training."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from diffreg.demo.measures import HELD_OUT, Case
from diffreg.demo.report import CREDITS
from diffreg.losses import usual_objective
from diffreg.registration import register, write_registration
from diffreg.registration.folders import REPORT

FOLDER = "first"
CASE = Case("colin27_t1", "mni152_t1", HELD_OUT[1])


def show_first(out: Path) -> Path:
    """Register one shipped slice onto another by the variational method, and say where it shows.

    Args:
        out: the folder of the demo's results; this one's are in a folder `first` in it.

    Returns:
        The report's file.

    Raises:
        ValueError: the folder cannot be written to.

    Example: `show_first(Path("demo"))`
    """
    start = time.perf_counter()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # of an image this small a second one brings nothing
        result = register(*CASE.images, objective=usual_objective("ncc"))
    finally:
        torch.set_num_threads(threads)
    written = write_registration(result, out / FOLDER, credits=CREDITS)
    seconds = time.perf_counter() - start
    report = out / FOLDER / REPORT
    print(f"{written.verdict}\nReport: {report} ({seconds:.1f} s)", flush=True)
    return report
