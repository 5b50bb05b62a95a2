"""Runs every study, then puts the page together.

    python paper/everything.py --data DIR [--device cuda] [--processes 2]
    python paper/everything.py --quick

First all networks, in processes side by side, then study by study what is left. What is finished
is in build/paper/runs and is not run again. The quick form runs each study's own, and no page.
A GPU is best shared by as many processes as there are cores, through NVIDIA's MPS
(nvidia-cuda-mps-control -d).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from page import STUDIES

HERE = Path(__file__).parent
# Each needs what those before it have left; inside one, all are independent.
TRAINING = (
    (["multimodal", "--only", "search"],),
    (
        ["monomodal"],
        ["regularisers"],
        ["similarity_weight"],
        ["multimodal", "--only", "networks"],
    ),
    (["multimodal", "--only", "longer"], ["networks"]),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder of docs/data.md")
    parser.add_argument("--quick", action="store_true", help="every study, small, without data")
    parser.add_argument("--device", default="cpu", help="where networks are trained (cpu)")
    parser.add_argument("--processes", type=int, default=2, help="that train side by side (2)")
    options = parser.parse_args()
    if options.quick:
        for study in STUDIES:
            run([study, "--quick"])
        return
    if options.data is None:
        parser.error("--data DIR is needed (docs/data.md), or --quick")
    if options.processes < 1:
        parser.error(f"--processes must be at least 1, got {options.processes}")
    common = ["--data", str(options.data), "--device", options.device]
    begin = time.perf_counter()
    train(common, options.processes)
    for study in STUDIES:
        run([study, *common])
    run(["page"])
    print(f"{(time.perf_counter() - begin) / 3600:.2f} hours")


def train(common: Sequence[str], processes: int) -> None:
    """All networks, each measured on what it has not seen."""
    for stage in TRAINING:
        tasks = [
            [*study, *common, "--part", f"{k}/{processes}"]
            for study in stage
            for k in range(processes)
        ]
        side_by_side(tasks, processes)


def side_by_side(tasks: Sequence[list[str]], processes: int) -> None:
    """All of them, so many at once; after one that fails no other is begun."""
    with ThreadPoolExecutor(processes) as pool:
        running = [pool.submit(run, task, {"OMP_NUM_THREADS": "1"}) for task in tasks]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run(arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """One script of this folder.

    Raises:
        SystemExit: it failed; its own message is on stderr.
    """
    script, *rest = arguments
    command = [sys.executable, str(HERE / f"{script}.py"), *rest]
    code = subprocess.run(command, env=os.environ | (environment or {})).returncode
    if code != 0:
        raise SystemExit(f"{' '.join(arguments)} failed (exit status {code})")


if __name__ == "__main__":
    main()
