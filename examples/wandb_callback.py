"""Weights & Biases as a callback of `diffreg train`: losses, folds, a picture, checkpoints.

    [training]
    callbacks = ["wandb_callback:WandB"]

In Python Trainer(config, callbacks=[WandB(project="hearts")]). Without a project it is that of the
environment, WANDB_PROJECT.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from uuid import uuid4

import wandb
from PIL import Image

from diffreg.training import Callback


class WandB(Callback):
    """One W&B run for a run of the trainer, which goes on with it: its id is beside the log."""

    def __init__(self, project: str | None = None) -> None:
        self.project = project

    def on_start(self, trainer: Any) -> None:
        kept = trainer.out / "wandb.txt"
        if trainer.step == 0 or not kept.exists():
            kept.write_text(uuid4().hex[:8])
        self.run = wandb.init(
            project=self.project,
            name=trainer.out.absolute().name,
            id=kept.read_text(),
            resume="allow",
            config=trainer.config.to_dict(),
        )

    def on_step(self, trainer: Any, entry: Any) -> None:
        self._log("training", entry)

    def on_validation(self, trainer: Any, entry: Any, picture: bytes) -> None:
        shown = wandb.Image(Image.open(io.BytesIO(picture)))
        self._log("validation", entry, {"validation/pair": shown})

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        self.run.save(str(path), base_path=str(trainer.out), policy="now")

    def on_end(self, trainer: Any) -> None:
        self.run.finish()

    def _log(self, title: str, entry: Any, more: dict[str, Any] | None = None) -> None:
        values = {f"{title}/{name}": value for name, value in entry._asdict().items()}
        self.run.log({**values, **(more or {})}, step=entry.step)
