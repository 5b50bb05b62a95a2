"""How a training run's memory grows: bytes a step, by a line through what is held after each.

    python tests/slope.py [--minutes 60] [--steps N]

Prints one line: steps, bytes held at the start and at the end, bytes a step of the second half.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from test_killed_training import CONFIG
from test_trainer import save_images

from diffreg.training import Callback, Trainer, load_config


def held() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * int(next(line.split()[1] for line in file if line.startswith("Rss:")))


class Growth(Callback):
    """What is held after every tenth step, and the end after some minutes."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.steps: list[int] = []
        self.bytes: list[int] = []

    def on_step(self, trainer, entry) -> None:
        if entry.step % 10 == 0:
            self.steps.append(entry.step)
            self.bytes.append(held())
        if time.monotonic() > self.end:
            raise KeyboardInterrupt

    def slope(self) -> float:
        """Bytes a step, of the second half: the first one settles the heap."""
        half = len(self.steps) // 2
        return float(np.polyfit(self.steps[half:], self.bytes[half:], 1)[0])


def trained(steps: int, minutes: float, growth: Growth | None = None, validate: int = 20) -> Growth:
    """A small run, validated every so many steps: matplotlib fills caches in the first twenty."""
    growth = growth or Growth(minutes)
    with tempfile.TemporaryDirectory() as folder:
        save_images(Path(folder) / "images")
        text = CONFIG.replace("'images'", f"'{folder}/images'")
        text = text.replace("steps = 40", f"steps = {steps}\nout = '{folder}/out'")
        text = text.replace("validate_every = 20", f"validate_every = {validate}")
        (Path(folder) / "config.toml").write_text(text)
        trainer = Trainer(load_config(Path(folder) / "config.toml"), callbacks=[growth])
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train()
    return growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=10_000_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    growth = trained(asked.steps, asked.minutes)
    first, last = growth.bytes[0] / 2**20, growth.bytes[-1] / 2**20
    print(
        f"{growth.steps[-1]} steps, {first:.1f} MiB after ten, {last:.1f} MiB at the end, "
        f"{growth.slope():.0f} bytes a step in the second half"
    )


if __name__ == "__main__":
    main()
