"""Runs the parts one after the other, each in its time, and keeps what they say: see run.sh.

OUT/results.json holds every row, rewritten after each part; OUT/rows.jsonl those of the part that
runs; OUT/log.txt the text of all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from rows import FILE, LEFT_OUT

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 540.0
LIMIT = 124  # as `timeout` has it
STATUS = {0: "passed", LEFT_OUT: "left out", LIMIT: "stopped: out of time"}


@dataclass(frozen=True)
class Part:
    """A process of the run.

    Args:
        name: in the results.
        seconds: that it may take at most.
        command: what runs.
        dry: whether a dry run has it.
        environment: beside that of the run.
    """

    name: str
    seconds: float
    command: list[str]
    dry: bool = True
    environment: dict[str, str] = field(default_factory=dict)


def parts(architecture: str, dry: bool) -> list[Part]:
    """Most important first."""
    python = sys.executable
    build = {"DIFFREG_CUDA": "auto", "DIFFREG_CUDA_ARCHITECTURES": architecture}
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-k", "not sanitizer"]
    # What fails is told before the time is up.
    tests += ["-p", "no:cacheprovider", "--tb=short", "--maxfail=10"]

    def script(name: str, seconds: float) -> Part:
        flag = ["--dry-run"] if dry else []
        # A processor that others use may take ten times as long; a GPU is there for this alone.
        limit = 10 * seconds if dry else seconds
        return Part(name, limit, [python, str(HERE / f"{name}.py"), *flag])

    return [
        Part("build", 100, [python, "setup.py", "-q", "build_ext", "--inplace"], False, build),
        Part("tests", 100, [*tests, "tests/gpu/test_gpu.py"], False),
        Part("training_tests", 120, [*tests, "tests/gpu/test_training.py"], False),
        script("sanitizer", 60),
        script("kernels", 60),
        script("calls", 25),
        # Three trainers, seven turns of 25 steps each at least, of five sizes: 20 s by what steps
        # took or are predicted to, beside what runs alone, captures and the images of 128^3.
        script("training", 60),
        script("counters", 30),
        script("rivals", 75),
    ]


def search_path() -> str:
    """With the folders where pip and NVIDIA leave their tools."""
    beside = str(Path(sys.executable).parent)
    return os.pathsep.join([beside, os.environ["PATH"], "/usr/local/cuda/bin"])


def missing(dry: bool) -> str | None:
    """What this machine lacks, in one line."""
    modules = ["torch", "numpy"] + ([] if dry else ["pytest", "setuptools", "tqdm"])
    tools = [] if dry else ["cmake", "ninja", "g++", "nvcc"]
    lacking = [name for name in modules if not importlib.util.find_spec(name)]
    if not dry and "setuptools" not in lacking and int(version("setuptools").split(".")[0]) < 77:
        lacking.append("setuptools>=77")
    lacking += [name for name in tools if not shutil.which(name, path=search_path())]
    return f"missing: {', '.join(lacking)}" if lacking else None


def capability() -> str | None:
    """Compute capability of the card, as in sm_90: 90."""
    asked = "import torch; print('%d%d' % torch.cuda.get_device_capability())"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    return ran.stdout.strip() or None


class Log:
    """Text to the terminal and to a file, as it comes."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        print(line, file=self._file, flush=True)


def in_its_time(part: Part, seconds: float, environment: dict[str, str], log: Log) -> int:
    """The exit status; LIMIT where the part, and all that it started, had to be killed."""
    out_of_time = threading.Event()
    with subprocess.Popen(
        part.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env=environment | part.environment,
        start_new_session=True,
    ) as process:

        def kill() -> None:
            out_of_time.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            for line in process.stdout or ():
                log(f"  {line.rstrip()}")
            status = process.wait()
        finally:  # by Ctrl-C too
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return LIMIT if out_of_time.is_set() else status


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a part wrote; a line that was cut off does not count."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def run(out: Path, dry: bool, seconds: float, only: list[str], log: Log) -> bool:
    """Whether all parts passed, or were left out for want of a tool."""
    architecture = None if dry else capability()
    if not dry and architecture is None:
        log("there is no GPU that torch can use: --dry-run walks through all parts without one")
        return False
    result: dict[str, Any] = {"dry_run": dry, "parts": {}}
    results, current = out / "results.json", out / "rows.jsonl"
    environment = os.environ | {FILE: str(current), "DIFFREG_GPU_RESULTS": str(results)}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PATH": search_path()}
    if dry:
        environment["OMP_NUM_THREADS"] = "1"
    end, good = time.monotonic() + seconds, True
    for part in parts(architecture or "", dry):
        if (only and part.name not in only) or (dry and not part.dry):
            continue
        left = end - time.monotonic()
        log(f"{part.name}: {max(0, min(part.seconds, left)):.0f} s at most")
        begin = time.monotonic()
        current.unlink(missing_ok=True)
        limit = min(part.seconds, left)
        status = in_its_time(part, limit, environment, log) if limit > 1 else LIMIT
        took = round(time.monotonic() - begin, 1)
        said = STATUS.get(status, f"failed, status {status}")
        log(f"{part.name}: {said}, {took} s")
        good &= status in (0, LEFT_OUT)
        result["parts"][part.name] = {"status": said, "seconds": took, "rows": rows_of(current)}
        results.write_text(json.dumps(result, indent=1) + "\n")
        current.unlink(missing_ok=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder for what comes of it")
    parser.add_argument("--dry-run", action="store_true", help="all parts on the CPU, tiny")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="all together (540)")
    parser.add_argument("--only", nargs="+", default=[], help="these parts")
    options = parser.parse_args()
    lacking = missing(options.dry_run)
    if lacking:
        raise SystemExit(lacking)
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    with (out / "log.txt").open("w") as file:
        log = Log(file)
        good = run(out, options.dry_run, options.seconds, options.only, log)
        log("all parts passed" if good else "NOT all parts passed")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
