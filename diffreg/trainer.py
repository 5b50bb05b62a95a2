"""Trains a network on pairs: batch, network, objective, backward, Adam; a log and checkpoints.

Everything random is a function of the seed and the step, so a run goes on from its checkpoint as if
it had never stopped. Called by the command line and the demo.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffreg import __version__
from diffreg._extras import require
from diffreg._files import require_folder
from diffreg.checkpoint import load_network, read_checkpoint, write_checkpoint
from diffreg.config import Config
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.losses import Objective
from diffreg.models import build_model
from diffreg.ops import jacobian_determinant
from diffreg.training_log import StepLog, appending

__all__ = ["NonFiniteLoss", "StepLog", "Trainer", "load_network"]

CHECKPOINT, LOG = "last.pt", "log.csv"
# Settings that may differ where a run goes on; all others make it another run.
_MAY_CHANGE = {("training", key) for key in ("out", "steps", "checkpoint_every", "resume")}


class NonFiniteLoss(ValueError):
    """The loss or its gradient is NaN or infinite; the weights are those of the step before."""


class Trainer:
    """One training run.

    Args:
        config: all its settings; `load_config` reads them.
        dataset: the pairs; None: those of `config.data`.
        progress: whether to draw a progress bar on stderr.

    Raises:
        FileNotFoundError, ValueError: images or settings that do not fit; or `training.out` holds a
            checkpoint and `training.resume` is not set, or that of another run.

    Example: `Trainer(load_config("config.toml")).train()`
    """

    def __init__(
        self, config: Config, dataset: PairDataset | None = None, progress: bool = True
    ) -> None:
        self.config = config
        self.out = Path(config.training.out)
        self.progress = progress
        data, seed = config.data, config.training.seed
        self.dataset = dataset or PairDataset(
            find_pairs(data.images, data.slices), config.normalization, config.augmentation, seed
        )
        self.objective = _objective(config, self.dataset.spacing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = dict(config.to_dict()["model"])
            self.network = build_model(model.pop("name"), **model)
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.step = 0
        self.best: dict[str, float] = {}
        self._since_checkpoint: list[float] = []
        if (self.out / CHECKPOINT).exists():
            self._resume()

    def train(self) -> None:
        """Take the steps that are left; afterwards `out` holds last.pt and log.csv.

        Raises:
            NonFiniteLoss: the run stopped; the last good checkpoint is kept.
            ValueError: the output folder cannot be written to.
        """
        settings = self.config.training
        self.out.mkdir(parents=True, exist_ok=True)
        require_folder(self.out, "the output folder")
        log = self.out / LOG
        with _threads(settings.threads), appending(log, self.step) as append, self._bar() as bar:
            while self.step < settings.steps:
                entry = self.train_step()
                append(entry)
                bar.update()
                bar.set_postfix(_shown(entry), refresh=False)
                if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
                    self.save_checkpoint()

    def train_step(self) -> StepLog:
        """One optimisation step on the next batch."""
        start = time.perf_counter()
        size = self.config.training.batch_size
        numbers = range(self.step * size, (self.step + 1) * size)
        batch = self.dataset.batch(numbers)
        self.network.train()
        displacement = self.network(batch.moving, batch.fixed)
        terms = self.objective(batch.moving, batch.fixed, displacement)
        self.optimizer.zero_grad()
        terms.total.backward()
        norm = self._gradient_norm(terms.total, batch.names)
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        smallest = jacobian_determinant(displacement.detach(), reduce="min").min()
        self._since_checkpoint.append(terms.total.item())
        return StepLog(
            step=self.step,
            epoch=self.dataset.position(numbers[0])[0],
            total=terms.total.item(),
            similarity=terms.similarity.mean().item(),
            diffusion=terms.diffusion.mean().item(),
            bending=terms.bending.mean().item(),
            determinant=terms.determinant.mean().item(),
            smallest_determinant=smallest.item(),
            gradient_norm=norm,
            learning_rate=rate,
            pairs_per_second=size / (time.perf_counter() - start),
        )

    def learning_rate(self, step: int) -> float:
        """That of a step, 0 being the first: half a cosine from the first rate to the final one."""
        first, final = (
            self.config.optimizer.learning_rate,
            self.config.optimizer.final_learning_rate,
        )
        if final is None:
            return first
        part = step / max(self.config.training.steps - 1, 1)
        return final + (first - final) * (1 + math.cos(math.pi * min(part, 1.0))) / 2

    def save_checkpoint(self, path: str | Path | None = None) -> None:
        """Write what is needed to go on, and to use the network.

        Args:
            path: the file; None is last.pt in `training.out`.
        """
        if self._since_checkpoint:
            mean = sum(self._since_checkpoint) / len(self._since_checkpoint)
            if mean < self.best.get("total", math.inf):
                self.best = {"total": mean, "step": self.step}
            self._since_checkpoint = []
        write_checkpoint(
            self.out / CHECKPOINT if path is None else path,
            {
                "config": self.config.to_dict(),
                "versions": _versions(),
                "weights": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "epoch": self.dataset.position(self.step * self.config.training.batch_size)[0],
                "best": self.best,
                "spacing": list(self.dataset.spacing),
                "pairs": [str(pair) for pair in self.dataset.pairs],
            },
        )

    def load_checkpoint(self, path: str | Path) -> None:
        """Take over weights, optimiser and step of a checkpoint of the same run.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, or that of a run with other settings or pairs.
        """
        contents = read_checkpoint(path)
        _check_same_run(contents, self, path)
        self.network.load_state_dict(contents["weights"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.step, self.best = contents["step"], contents["best"]

    def _resume(self) -> None:
        path = self.out / CHECKPOINT
        if not self.config.training.resume:
            raise ValueError(
                f"{path} is the checkpoint of an earlier run: set training.resume=true to continue "
                "it, or give another training.out"
            )
        self.load_checkpoint(path)

    def _gradient_norm(self, total: torch.Tensor, names: tuple[str, ...]) -> float:
        """The norm of the gradient, which is shortened where it is too long for the settings.

        A loss or a gradient that is not finite stops the run before the weights take harm.
        """
        parameters = list(self.network.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(total)) or not bool(torch.isfinite(norm)):
            kept = self.out / CHECKPOINT
            where = f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint yet"
            raise NonFiniteLoss(
                f"the loss is {total.item():g} and its gradient's norm {norm.item():g} at step "
                f"{self.step + 1}, pairs {'; '.join(names)}; {where}"
            )
        longest = self.config.optimizer.clip_norm
        if longest is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, longest, norm)
        return norm.item()

    def _bar(self) -> Any:
        tqdm = require("tqdm", "progress bars")
        return tqdm.tqdm(
            desc=self.out.name,
            total=self.config.training.steps,
            initial=self.step,
            unit="step",
            disable=not self.progress,
            mininterval=0.5 if sys.stderr.isatty() else 20,  # few lines in a file
            dynamic_ncols=True,
        )


def _objective(config: Config, spacing: tuple[float, ...]) -> Objective:
    settings = config.objective
    return Objective(
        settings.similarity,
        settings.weights,
        settings.padding,
        settings.penalty,
        settings.threshold,
        spacing,
    )


def _versions() -> dict[str, str]:
    return {"diffreg": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


def _shown(entry: StepLog) -> dict[str, str]:
    """The loss terms beside the progress bar."""
    values = {
        "total": entry.total,
        "similarity": entry.similarity,
        "E1": entry.diffusion,
        "E2": entry.bending,
        "Edet": entry.determinant,
        "min J": entry.smallest_determinant,
    }
    return {name: f"{value:.3g}" for name, value in values.items()}


def _check_same_run(contents: dict[str, Any], trainer: Trainer, path: str | Path) -> None:
    """Refuse a checkpoint that another run left: going on from it would be neither."""
    ours = trainer.config.to_dict()
    for section, table in Config.from_dict(contents["config"]).to_dict().items():
        for key in {*table, *ours[section]} - {k for s, k in _MAY_CHANGE if s == section}:
            if (section, key) == ("data", "images"):
                continue  # the pairs themselves are compared: the folder may have moved
            before, now = table.get(key), ours[section].get(key)
            if before != now:
                raise ValueError(
                    f"{path} is of a run with {section}.{key} = {before!r}, not {now!r}; give "
                    "another training.out"
                )
    if contents["pairs"] != [str(pair) for pair in trainer.dataset.pairs]:
        raise ValueError(f"{path} is of a run on other pairs; give another training.out")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch's threads, for as long as the run; 0 leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
