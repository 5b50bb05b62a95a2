"""Peak memory and time of a step of training LU-net on volumes, from files, on the CPU.

    python bench/training_memory.py [--sizes 16 64 96 128] [--steps 3] [--batch 1] [--checkpointing]

Cubes of so many voxels a side, a fresh process each, on one thread. Prints what its log says in the
end: the largest resident size of the process in MiB, and the seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memory import heads

from diffreg.training.log import read_log

SETTINGS = {
    "full": ("model.half_resolution=false",),
    "half": ("model.half_resolution=true",),
    "half, integrated": ("model.half_resolution=true", "model.integrate=true"),
}


def measured(size: int, steps: int, batch: int, more: tuple[str, ...]) -> dict[str, Any]:
    """MiB of the process, and seconds of its last step."""
    with TemporaryDirectory() as folder:
        file, out = Path(folder) / "train.toml", Path(folder) / "run"
        images = heads(Path(folder), (size,) * 3)
        file.write_text(f"data.images = {images}\nmodel.dimensions = 3\n")
        training = {"out": out, "steps": steps, "batch_size": batch, "device": "cpu", "threads": 1}
        words = [*(f"training.{key}={value}" for key, value in training.items()), *more]
        command = [sys.executable, "-m", "diffreg", "train", str(file), *words]
        subprocess.run(command, check=True, capture_output=True)
        last = read_log(out / "log.csv")[-1]
    return {"MiB": round(last.peak_memory), "seconds": round(batch / last.pairs_per_second, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 96, 128])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument(
        "--checkpointing", action="store_true", help="training.activation_checkpointing"
    )
    options = parser.parse_args()
    more = ("training.activation_checkpointing=true",) if options.checkpointing else ()
    for size in options.sizes:
        for name in options.networks:
            found = measured(size, options.steps, options.batch, (*SETTINGS[name], *more))
            print(json.dumps({"cube": size, "network": name, **found}), flush=True)


if __name__ == "__main__":
    main()
