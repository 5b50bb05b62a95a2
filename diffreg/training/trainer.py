"""Trains a network on pairs: batch after batch, logs, validations and checkpoints.

Everything random is a function of the seed and the step, so a run goes on from its checkpoint as if
it had never stopped, on as many processes as there then are.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffreg.models import in_memory_order
from diffreg.system.atomic import alone_in, remove_leftovers
from diffreg.system.extras import require
from diffreg.system.files import require_folder, require_place
from diffreg.system.signals import Stopped, whole
from diffreg.training._parts import Parts
from diffreg.training.callbacks import callbacks_of, tell, telling
from diffreg.training.checkpoint import (
    fresh_network,
    load_weights,
    own_names,
    read_checkpoint,
    write_checkpoint,
)
from diffreg.training.config import Config
from diffreg.training.continuing import check_same_run, contents_of, goes_on, weights_of
from diffreg.training.datasets import datasets
from diffreg.training.loading import telling_of_workers
from diffreg.training.log import StepLog, ValidationLog
from diffreg.training.optimization import Optimization, check_parts
from diffreg.training.own import OwnModel, check_trainable, needed, set_checkpointing, settled
from diffreg.training.ranks import Ranks, single
from diffreg.training.running import progress_bar, repeatable, running
from diffreg.training.step import Step
from diffreg.training.steps import Steps
from diffreg.training.terms import check_window, measure, objective_of
from diffreg.training.validation import picture, predictor, validate

LAST, BEST = "last.pt", "best.pt"
_IN_USE = (
    "another process trains into {}: give another training.out; the processes of one run are "
    "started by torchrun"
)


class NonFiniteLoss(ValueError):
    """The loss or its gradient is NaN or infinite; the weights are those of the step before."""


class Trainer(Parts):
    """One training run.

    Args:
        config: all its settings; `load_config` reads them.
        dataset: the pairs, a PairDataset or a torch Dataset of dicts (docs/training.md); None:
            those of `config.data`, and those to validate on with them.
        validation: the same to validate on where `dataset` is given; None: no validation.
        progress: whether to draw a progress bar on stderr.
        ranks: this process among those of the run; None: alone, on `config.training.device`.
        network: what is trained in place of what `config.model` names, `(moving, fixed) ->
            displacement`; its checkpoints say that it was an object, and of what kind. Of volumes
            where its `dimensions`, its `config.dimensions` or `config.model.dimensions` is 3.
        callbacks: who is told of steps, validations and checkpoints (`diffreg.training.Callback`),
            beside those of `training.callbacks`.

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
        dataset: Any = None,
        validation: Any = None,
        progress: bool = True,
        ranks: Ranks | None = None,
        network: nn.Module | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        if not isinstance(config, Config):
            raise TypeError(f"config must be a Config, of load_config(path), got {config!r:.80}")
        settings, model = config.training, config.model
        described = model if network is None else OwnModel.given(network, model)
        self.config = config = replace(config, model=settled(described))
        self.out = Path(settings.out)
        self.ranks = ranks = ranks or single(settings.device)
        self.progress = progress and ranks.first
        self.callbacks = callbacks_of(settings, callbacks) if ranks.first else []
        check_parts(settings, ranks.count)
        going_on = goes_on(config, self.out / LAST)
        # What can be refused without the images is, before they are read and moved.
        require_place(self.out, "the output folder")
        objective = objective_of(config.objective)
        if not going_on:
            check_window(config.objective, objective)
        self.needs = needed(*own_names(config))
        self.network = self._placed(network, settings.start if not going_on else "")
        self.dataset, self.validation = datasets(config, dataset, validation, ranks, self.progress)
        if settings.patience and self.validation is None:
            raise ValueError("training.patience needs pairs to validate on: data.validation")
        self.objective = objective.with_spacing(self.dataset.spacing).to(ranks.device)
        self.optimization = Optimization(self.network, config, ranks.device)
        self.optimizer = self.optimization.optimizer
        self.step = 0
        self.best: dict[str, float] = {}
        self.unvalidated = False  # whether the run was stopped before the validation of its step
        self._validated = 0  # the step of the last one
        self._saved: int | None = None  # the step of last.pt
        wrapped: Any = ranks.wrapped(self.network)
        running = torch.compile(wrapped) if settings.compile else wrapped
        how = ranks.device, settings.precision
        self._measured = predictor(self.optimization.result, *how)
        predict, parts = predictor(running, *how), (config, self.optimization, ranks)
        step = Step(wrapped, predict, self.objective, *parts)
        self._steps = Steps(step, self.dataset)
        if going_on:
            self.load_checkpoint(self.out / LAST)

    def _placed(self, network: nn.Module | None, start: str) -> nn.Module:
        """What is trained, given or fresh, with the weights of a start, where it is trained."""
        config = self.config
        network = fresh_network(config) if network is None else network
        check_trainable(network)
        set_checkpointing(network, config.training.activation_checkpointing)
        if start:
            load_weights(network, weights_of(start, config), start)
        order = config.model.dimensions, config.training.channels_last
        return in_memory_order(network.to(self.ranks.device), *order)

    def train(self) -> None:
        """Take the steps that are left; afterwards `out` holds last.pt and log.csv.

        With pairs to validate on also best.pt, validation.csv and a picture of one pair a time. A
        signal that ends the command, Ctrl-C apart, does so after the step, with a checkpoint.

        Raises:
            NonFiniteLoss: the run stopped; the last good checkpoint is kept.
            ValueError: the output folder cannot be written to, or another process trains into it.
            ImportError: there are pairs to validate on, and no matplotlib.
        """
        settings = self.config.training
        if self.validation is not None:
            require("matplotlib", "the pictures of a validation")
        self.out.mkdir(parents=True, exist_ok=True)
        require_folder(self.out, "the output folder")
        if self.ranks.first:
            remove_leftovers(self.out)
        with (
            alone_in(self.out, _IN_USE.format(self.out)) if self.ranks.first else nullcontext(),
            running(settings.threads, self.ranks.device),
            closing(self.dataset),
            telling_of_workers(self.config.data.workers),
            telling(self.callbacks, self),
            progress_bar(self.out.name, settings.steps, self.step, self.progress) as show,
        ):
            try:
                self._go_on(show)
            except Stopped as stopped:
                # Ctrl-C breaks off a step.
                if stopped.args[0] != signal.SIGINT and self.step:
                    validating = self._due(settings.validate_every)
                    self.unvalidated = validating and self._validated != self.step
                    self._tell_steps(show)
                    self._save_news()
                raise

    def _go_on(self, show: Callable[[StepLog], None]) -> None:
        """The steps that are left, with validations and checkpoints."""
        settings = self.config.training
        if self.validation and self.unvalidated:
            self._validate()
            self._saved = None  # what it found is news
        self.unvalidated = False
        while self.step < settings.steps and not self.stopped_early:
            self._take_step()
            saving = self._due(settings.checkpoint_every)
            if self._steps.full or self._due(settings.validate_every) or saving:
                self._tell_steps(show)
            if self.validation and self._due(settings.validate_every):
                self._validate()
            if saving or self.stopped_early:
                self.save_checkpoint()
        self._save_news()  # steps taken before by `take`

    def _tell_steps(self, show: Callable[[StepLog], None]) -> None:
        """Of the steps since the last time."""
        with whole():
            for entry in self._read_steps():
                tell(self.callbacks, "on_step", self, entry)
                show(entry)

    def _due(self, every: int) -> bool:
        """Whether what is done every so many steps, and after the last one, is at this one."""
        return self.step == self.config.training.steps or self.step % every == 0

    def _save_news(self) -> None:
        """A checkpoint, unless the last one is of this step."""
        if self._saved != self.step:
            self.save_checkpoint()

    def train_step(self) -> StepLog:
        """One optimisation step on the next batch, of which every rank computes its share."""
        return self.take(1)[0]

    def take(self, steps: int) -> list[StepLog]:
        """So many steps, without validations and checkpoints.

        Returns:
            Their lines of the log. On a GPU, where the host waits for what it reads, they are read
            25 at once, so that one call is faster than as many of `train_step`.

        Raises:
            NonFiniteLoss: as `train`.
        """
        entries: list[StepLog] = []
        with repeatable():
            for number in range(1, steps + 1):
                self._take_step()
                if self._steps.full or number == steps:
                    entries += self._read_steps()
        return entries

    def _take_step(self) -> None:
        """One step, whose line of the log stays where it is computed until it is read."""
        # A rank that left before its part in a step would break it off for the others.
        alone = self.ranks.count == 1
        batch = self._steps.drawn(self.step) if alone else None
        with whole():  # weights and step are of each other
            self._steps.take(self.step, batch if alone else self._steps.drawn(self.step))
            self.step += 1

    def _read_steps(self) -> Iterator[StepLog]:
        """The lines of the steps since the last time; the host waits for the device.

        Raises:
            NonFiniteLoss: at the first that was not finite, after which no weight was changed.
        """
        found = self._steps.read()
        # Before anyone is told: who saves a checkpoint then has the step of these weights.
        self.step = next((entry.step - 1 for entry, stopped in found if stopped), self.step)
        for entry, stopped in found:
            if stopped:
                self._stop(entry)
            yield entry

    def learning_rate(self, step: int) -> float:
        """That of a step, 0 being the first: a line up, then half a cosine to the final rate."""
        return self.optimization.rate(step)

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
        best = f"; {self.out / BEST} is of step {self.best['step']}" if self.best else ""
        return f"{self.out / LAST}: {self.step} steps{early}{best}"

    def save_checkpoint(self, path: str | Path | None = None) -> None:
        """Write what is needed to go on, and to use the network; only the first rank does.

        Args:
            path: the file; None is last.pt in `training.out`.
        """
        if not self.ranks.first:
            return
        path = self.out / LAST if path is None else Path(path)
        with whole():
            write_checkpoint(path, contents_of(self))
            self._saved = self.step if path == self.out / LAST else self._saved
        tell(self.callbacks, "on_checkpoint", self, path)

    def load_checkpoint(self, path: str | Path) -> None:
        """Take over weights, optimiser and step of a checkpoint of the same run.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, or that of a run with other settings or pairs.
        """
        contents = read_checkpoint(path)
        check_same_run(contents, self.config, self.dataset, path)
        self.optimization.load(contents, path)
        self._steps.forget()
        self.step = self._saved = self._validated = contents["step"]
        if contents.get("unvalidated"):
            self.unvalidated, self._validated = True, 0
        # What was best on other pairs, or in training, is not what is best on these.
        names = self.validation.names if self.validation else []
        self.best = contents["best"] if names and contents.get("validation", names) == names else {}

    def validate(self) -> ValidationLog:
        """The network as it is, on the pairs kept out; every rank measures its share.

        Raises:
            ValueError: there are none.
        """
        if self.validation is None:
            raise ValueError("there are no pairs to validate on: data.validation")
        self.optimization.result.eval()

        def measured(*parts: Any) -> torch.Tensor:
            settings = self.config.objective
            return measure(self.objective, settings, self._measured, *parts)[1]

        return validate(self._measured, self.validation, measured, self.ranks, self.step)

    def _validate(self) -> None:
        """Tells of a validation, with a picture; the best one so far is kept as best.pt."""
        entry = self.validate()
        if entry.total < self.best.get("total", math.inf):
            self.best = {"total": entry.total, "step": self.step}
            self.save_checkpoint(self.out / BEST)
        if self.ranks.first and self.validation is not None:
            shown = picture(self._measured, self.validation, self.ranks.device)
            tell(self.callbacks, "on_validation", self, entry, shown)
        self._validated = self.step

    def _stop(self, entry: StepLog) -> None:
        size, kept = self.config.training.batch_size, self.out / LAST
        numbers = range((entry.step - 1) * size, entry.step * size)
        where = f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint yet"
        raise NonFiniteLoss(
            f"the loss is {entry.total:g} and its gradient's norm {entry.gradient_norm:g} at step "
            f"{entry.step}, pairs {'; '.join(map(self.dataset.name, numbers))}; {where}"
        )
