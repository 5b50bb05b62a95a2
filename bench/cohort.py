"""What a pair of heads of a manifest costs, registered by one process and by several.

    python bench/cohort.py [--pairs 4] [--processes 1 2]

The pairs are the two heads that ship, 2 mm, both ways round, every second one turned by 20 degrees
and shifted, so that an affine start is found. Prints a line for each number of processes: CPU
seconds of all of them, of a pair, and seconds by the clock, with a thread each; and whether all
gave the same displacements.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from diffreg.demo.raw import FIXED, MOVING, write_raw_heads

DIFFREG = ("-m", "diffreg")


def write_manifest(folder: Path, pairs: int) -> Path:
    turned, straight = write_raw_heads(folder / "heads")
    kinds = [(MOVING, FIXED), (turned, straight), (FIXED, MOVING), (straight, turned)]
    rows = [",".join(map(str, kinds[k % len(kinds)])) for k in range(pairs)]
    (folder / "pairs.csv").write_text("\n".join(["moving,fixed", *rows]))
    return folder / "pairs.csv"


def registered(manifest: Path, out: Path, processes: int) -> tuple[float, float]:
    """CPU seconds, of all processes, and seconds by the clock."""
    command = [*DIFFREG, "register", str(manifest), "-o", str(out)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [*launcher, str(processes), *command]
    before, begin = os.times(), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
    after, end = os.times(), time.perf_counter()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system, end - begin


def digest(out: Path) -> str:
    """Of all displacements, in the order of the pairs."""
    found = hashlib.sha256()
    for path in sorted(out.glob("*/displacement.nii.gz")):
        found.update(path.read_bytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder), options.pairs)
        digests = set()
        for processes in options.processes:
            out = Path(folder) / f"by_{processes}"
            used, clock = registered(manifest, out, processes)
            digests.add(digest(out))
            each = used / options.pairs
            print(
                f"{options.pairs} pairs by {processes}: {used:.1f} CPU s, {each:.1f} a pair, "
                f"{clock:.1f} s by the clock",
                flush=True,
            )
        print("the same displacements" if len(digests) == 1 else "other displacements")


if __name__ == "__main__":
    main()
