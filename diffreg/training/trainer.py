"""Trains a network on pairs: batch, network, objective, backward, Adam; logs and checkpoints.

Everything random is a function of the seed and the step, so a run goes on from its checkpoint as if
it had never stopped, on as many processes as there then are.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffreg import __version__
from diffreg._extras import require
from diffreg._files import remove_leftovers, replacing, require_folder
from diffreg._memory import kept_memory, peak_memory
from diffreg.data.pairs import PairDataset, find_pairs, split_by_group
from diffreg.losses import Objective
from diffreg.models import build_model, memory_order
from diffreg.ops import jacobian_determinant
from diffreg.training._parts import Parts, check_parameters
from diffreg.training.checkpoint import load_network, read_checkpoint, write_checkpoint
from diffreg.training.config import Config
from diffreg.training.continuing import check_same_run, weights_of
from diffreg.training.log import (
    Logs,
    StepLog,
    ValidationLog,
    appending,
    progress_terms,
    tensorboard,
)
from diffreg.training.ranks import Ranks, single
from diffreg.training.validation import picture, predictor, validate

__all__ = ["NonFiniteLoss", "StepLog", "Trainer", "load_network"]

LAST, BEST, LOG, VALIDATION = "last.pt", "best.pt", "log.csv", "validation.csv"
PICTURES = "pictures"
# How a network's input lies in space, kept with the weights.
_ORIENTATION = "stored array axes; the moving image on the fixed image's grid; displacement voxels"


class NonFiniteLoss(ValueError):
    """The loss or its gradient is NaN or infinite; the weights are those of the step before."""


class Trainer(Parts):
    """One training run.

    Args:
        config: all its settings; `load_config` reads them.
        dataset: the pairs; None: those of `config.data`, and those to validate on with them.
        validation: the pairs to validate on where `dataset` is given; None: no validation.
        progress: whether to draw a progress bar on stderr.
        ranks: this process among those of the run; None: alone, on `config.training.device`.

    What it is made of (network, objective, optimizer, dataset, ...) can be looked at and not be
    replaced: the checkpoints would be of another run than they say.

    Raises:
        FileNotFoundError, ValueError: images, settings or a `training.start` that do not fit; or
            `training.out` holds a checkpoint and `training.resume` is not set, or that of another
            run.

    Example: `Trainer(load_config("config.toml")).train()`
    """

    def __init__(
        self,
        config: Config,
        dataset: PairDataset | None = None,
        validation: PairDataset | None = None,
        progress: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        settings = config.training
        self.config = config
        self.out = Path(settings.out)
        self.ranks = ranks or single(settings.device)
        self.progress = progress and self.ranks.first
        if settings.batch_size < self.ranks.count:
            raise ValueError(
                f"training.batch_size must be at least the {self.ranks.count} processes, "
                f"got {settings.batch_size}"
            )
        self.dataset, self.validation = (
            _datasets(config) if dataset is None else (dataset, validation)
        )
        if settings.patience and self.validation is None:
            raise ValueError("training.patience needs pairs to validate on: data.validation")
        self.objective = _objective(config, self.dataset.spacing)
        network = _fresh_network(config)
        going_on = (self.out / LAST).exists()
        if settings.start and not going_on:
            network.load_state_dict(weights_of(settings.start, config))
        order = memory_order(config.model.dimensions, settings.channels_last)
        self.network = network.to(self.ranks.device).to(memory_format=order)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.step = 0
        self.best: dict[str, float] = {}
        self._since_checkpoint: list[float] = []
        if going_on:
            self._resume()
        running: Any = self.ranks.wrapped(self.network)
        if settings.compile:
            running = torch.compile(running)
        self._predict = predictor(running, self.ranks.device, settings.precision)
        self._measured = predictor(self.network, self.ranks.device, settings.precision)

    def train(self) -> None:
        """Take the steps that are left; afterwards `out` holds last.pt and log.csv.

        With pairs to validate on also best.pt, validation.csv and a picture of one pair a time.

        Raises:
            NonFiniteLoss: the run stopped; the last good checkpoint is kept.
            ValueError: the output folder cannot be written to.
        """
        settings = self.config.training
        self.out.mkdir(parents=True, exist_ok=True)
        require_folder(self.out, "the output folder")
        if self.ranks.first:
            remove_leftovers(self.out)
        with (
            kept_memory() if self.ranks.device.type == "cpu" else nullcontext(),
            _threads(settings.threads),
            self._logs() as logs,
            self._bar() as bar,
        ):
            while self.step < settings.steps and not self.stopped_early:
                entry = self.train_step()
                logs.step(entry)
                bar.update()
                bar.set_postfix(progress_terms(entry), refresh=False)
                last = self.step == settings.steps
                if self.validation and (last or self.step % settings.validate_every == 0):
                    self._validate(logs)
                if last or self.stopped_early or self.step % settings.checkpoint_every == 0:
                    self.save_checkpoint()

    def train_step(self) -> StepLog:
        """One optimisation step on the next batch, of which every rank computes its share."""
        start = time.perf_counter()
        settings, ranks = self.config.training, self.ranks
        size = settings.batch_size
        numbers = range(self.step * size, (self.step + 1) * size)
        batch = self.dataset.batch(ranks.share(numbers), ranks.device)
        order = memory_order(self.config.model.dimensions, settings.channels_last)
        moving, fixed = (
            image.contiguous(memory_format=order) for image in (batch.moving, batch.fixed)
        )
        check_parameters(self.network, self.optimizer)
        self.network.train()
        displacement = self._predict(moving, fixed)
        terms = self.objective(moving, fixed, displacement, batch.mask, return_warped=False)
        # The ranks' gradients are averaged: a rank's weight there is 1, and should be its share.
        share = len(moving) / size
        self.optimizer.zero_grad()
        (terms.total * (share * ranks.count)).backward()
        means = ranks.sum(torch.stack([term.detach().mean() for term in terms[:5]]) * share)
        norm = self._gradient_norm(means[0], numbers)
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        cells = jacobian_determinant(displacement.detach(), reduce="min")
        smallest = ranks.smallest(cells.min())
        folded = ranks.sum((cells <= 0).float().mean() * (100 * share))
        self._since_checkpoint.append(means[0].item())
        total, similarity, diffusion, bending, determinant = means.tolist()
        return StepLog(
            step=self.step,
            epoch=self.dataset.position(numbers[0])[0],
            total=total,
            similarity=similarity,
            diffusion=diffusion,
            bending=bending,
            determinant=determinant,
            smallest_determinant=smallest.item(),
            folded_percent=folded.item(),
            gradient_norm=norm,
            learning_rate=rate,
            pairs_per_second=size / (time.perf_counter() - start),
            peak_memory=_peak_memory(ranks.device),
        )

    def learning_rate(self, step: int) -> float:
        """That of a step, 0 being the first: a line up, then half a cosine to the final rate."""
        settings = self.config.optimizer
        first, final, warmup = (
            settings.learning_rate,
            settings.final_learning_rate,
            settings.warmup_steps,
        )
        if step < warmup:
            return first * (step + 1) / (warmup + 1)
        if final is None:
            return first
        part = (step - warmup) / max(self.config.training.steps - 1 - warmup, 1)
        return final + (first - final) * (1 + math.cos(math.pi * min(part, 1.0))) / 2

    @property
    def stopped_early(self) -> bool:
        """Whether `patience` validations in a row were no better than the best one."""
        settings = self.config.training
        if not settings.patience or "step" not in self.best:
            return False
        return self.step - self.best["step"] >= settings.patience * settings.validate_every

    @property
    def conclusion(self) -> str:
        """What a run that ended says of itself."""
        early = " (stopped early)" if self.step < self.config.training.steps else ""
        best = f"; {self.out / BEST} is of step {self.best['step']}" if self.validation else ""
        return f"{self.out / LAST}: {self.step} steps{early}{best}"

    def save_checkpoint(self, path: str | Path | None = None) -> None:
        """Write what is needed to go on, and to use the network; only the first rank does.

        Args:
            path: the file; None is last.pt in `training.out`.
        """
        if self._since_checkpoint and self.validation is None:
            self._note_best(sum(self._since_checkpoint) / len(self._since_checkpoint))
        self._since_checkpoint = []
        if not self.ranks.first:
            return
        epoch, place = divmod(self.step * self.config.training.batch_size, len(self.dataset))
        write_checkpoint(
            self.out / LAST if path is None else path,
            {
                "config": self.config.to_dict(),
                "versions": _versions(),
                "weights": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "learning_rate": self.learning_rate(self.step),
                "step": self.step,
                "epoch": epoch,
                "place_in_epoch": place,
                "best": self.best,
                "spacing": list(self.dataset.spacing),
                "orientation": _ORIENTATION,
                "pairs": [pair.name for pair in self.dataset.pairs],
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
        check_same_run(contents, self.config, self.dataset.pairs, path)
        self.network.load_state_dict(contents["weights"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.step, self.best = contents["step"], contents["best"]

    def _validate(self, logs: Logs) -> None:
        """Measures the network on the pairs kept out; the best one so far is kept as best.pt."""
        if self.validation is None:
            return
        self.network.eval()
        entry = validate(self._measured, self.validation, self.objective, self.ranks, self.step)
        if self._note_best(entry.total):
            self.save_checkpoint(self.out / BEST)
        if self.ranks.first:
            shown = picture(self._measured, self.validation, self.ranks.device)
            logs.validation(entry, shown)
            (self.out / PICTURES).mkdir(exist_ok=True)
            with replacing(self.out / PICTURES / f"step{self.step:07d}.png") as temporary:
                temporary.write_bytes(shown)

    def _note_best(self, total: float) -> bool:
        if not total < self.best.get("total", math.inf):
            return False
        self.best = {"total": total, "step": self.step}
        return True

    def _resume(self) -> None:
        path = self.out / LAST
        if not self.config.training.resume:
            raise ValueError(
                f"{path} is the checkpoint of an earlier run: set training.resume=true (--resume) "
                "to continue it, or give another training.out"
            )
        self.load_checkpoint(path)

    def _gradient_norm(self, total: torch.Tensor, numbers: Sequence[int]) -> float:
        """The norm of the gradient, which is shortened where it is too long for the settings.

        A loss or a gradient that is not finite stops the run before the weights take harm.
        """
        parameters = list(self.network.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(total)) or not bool(torch.isfinite(norm)):
            kept = self.out / LAST
            where = f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint yet"
            raise NonFiniteLoss(
                f"the loss is {total.item():g} and its gradient's norm {norm.item():g} at step "
                f"{self.step + 1}, pairs {'; '.join(map(self.dataset.name, numbers))}; {where}"
            )
        longest = self.config.optimizer.clip_norm
        if longest is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, longest, norm)
        return norm.item()

    @contextmanager
    def _logs(self) -> Iterator[Logs]:
        """What is written beside the checkpoints, by the first rank."""
        if not self.ranks.first:
            yield Logs()
            return
        with ExitStack() as stack:
            logs = Logs(stack.enter_context(appending(self.out / LOG, self.step)))
            if self.validation is not None:
                file = self.out / VALIDATION
                logs.validation_line = stack.enter_context(
                    appending(file, self.step, ValidationLog)
                )
            if self.config.training.tensorboard:
                logs.show = stack.enter_context(tensorboard(self.out / "tensorboard", self.step))
            yield logs

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


def _datasets(config: Config) -> tuple[PairDataset, PairDataset | None]:
    """The pairs to train on, and those to validate on, which are never augmented."""
    data, seed = config.data, config.training.seed
    taken = data.slices, config.model.dimensions
    pairs, held_out = split_by_group(
        find_pairs(data.images, *taken), data.validation_groups, data.validation_share, seed
    )
    if data.validation:
        held_out = find_pairs(data.validation, *taken)
    training = PairDataset(pairs, config.normalization, config.augmentation, seed)
    if not held_out:
        return training, None
    validation = PairDataset(held_out, config.normalization, batches=False)
    if validation.spacing != training.spacing:
        raise ValueError(
            f"the voxels of the pairs to validate on have proportions {validation.spacing}, those "
            f"to train on {training.spacing}: they must be of one shape"
        )
    return training, validation


def _fresh_network(config: Config) -> nn.Module:
    """Its weights are a function of the seed, whatever torch's default dtype is."""
    model = dict(config.to_dict()["model"])
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        try:
            torch.set_default_dtype(torch.float32)
            return build_model(model.pop("name"), **model)
        finally:
            torch.set_default_dtype(default)


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


def _peak_memory(device: torch.device) -> float:
    """MiB that were held at most so far, where the network is."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory()


def _versions() -> dict[str, str]:
    return {"diffreg": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch's threads, for as long as the run; 0 leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
