"""How weights change: Adam or AdamW, its rate, the scale of float16, a running mean of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffreg.training.checkpoint import load_weights
from diffreg.training.config import Config, OptimizerConfig

_SMALLEST_SCALE = 1.0  # of a float16 loss: where its gradient is not finite, the loss is to blame


class Optimization:
    """The optimiser of a network, and what goes with it.

    Args:
        network: whose parameters are changed.
        config: of the run.
        device: of the network.

    What a checkpoint needs of it is `state()`, which `load` takes; a run goes on to the same bits.
    """

    def __init__(self, network: nn.Module, config: Config, device: torch.device) -> None:
        settings = config.optimizer
        self.network, self.config = network, config
        self.optimizer = _optimizer(network, settings)
        half = config.training.precision == "float16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.averaged: AveragedModel | None = None
        if settings.average:
            mean = get_ema_multi_avg_fn(settings.average)
            self.averaged = AveragedModel(network, multi_avg_fn=mean)

    @property
    def result(self) -> nn.Module:
        """The network to measure and to keep: that of the mean weights, where there are such."""
        return self.network if self.averaged is None else self.averaged.module

    def rate(self, step: int) -> float:
        """That of a step, 0 being the first."""
        return learning_rate(self.config.optimizer, self.config.training.steps, step)

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradient to those that are there."""
        self.scaler.scale(loss).backward()

    def gradient_norm(self) -> Tensor:
        """The norm of the gradient, which is shortened where it is too long for the settings."""
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.network.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        longest = self.config.optimizer.clip_norm
        if longest is not None:
            nn.utils.clip_grads_with_norm_(parameters, longest, norm)
        return norm

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite may be float16's range: a smaller scale mends that.

        Such a step changes no weight.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() > _SMALLEST_SCALE

    def step(self, number: int) -> float:
        """Change the weights by the gradients that are there; the rate of that step."""
        rate = self.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return rate

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the weights to use, and what is needed to go on."""
        found = {"weights": self.result.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.averaged is not None:
            found["trained"] = self.network.state_dict()
        if self.scaler.is_enabled():
            found["scaler"] = self.scaler.state_dict()
        return found

    def load(self, contents: dict[str, Any], path: Any) -> None:
        """Take over the state of a checkpoint of the same run."""
        load_weights(self.network, contents.get("trained", contents["weights"]), path)
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scaler.load_state_dict(contents.get("scaler", {}))
        if self.averaged is not None:
            load_weights(self.averaged.module, contents["weights"], path)
            self.averaged.n_averaged.fill_(contents["step"])


def _optimizer(network: nn.Module, settings: OptimizerConfig) -> torch.optim.Optimizer:
    if settings.weight_decay:
        return torch.optim.AdamW(network.parameters(), weight_decay=settings.weight_decay)
    return torch.optim.Adam(network.parameters())


def learning_rate(settings: OptimizerConfig, steps: int, step: int) -> float:
    """That of a step, 0 being the first: a line up, then half a cosine to the final rate.

    Args:
        settings: first and final rate, steps of the warm-up.
        steps: of the run.
        step: which.

    Example:
        >>> from diffreg.training.config import OptimizerConfig
        >>> from diffreg.training.optimization import learning_rate
        >>> learning_rate(OptimizerConfig(1e-2, 1e-3), 11, 10)
        0.001
    """
    first, final, warmup = (
        settings.learning_rate,
        settings.final_learning_rate,
        settings.warmup_steps,
    )
    if step < warmup:
        return first * (step + 1) / (warmup + 1)
    if final is None:
        return first
    part = (step - warmup) / max(steps - 1 - warmup, 1)
    return final + (first - final) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


def parts_of(numbers: Sequence[Any], count: int) -> list[slice]:
    """A batch in so many parts, which differ by one at most.

    Example:
        >>> from diffreg.training.optimization import parts_of
        >>> parts_of(range(5), 2)
        [slice(0, 2, None), slice(2, 5, None)]
    """
    size = len(numbers)
    return [slice(size * k // count, size * (k + 1) // count) for k in range(count)]
