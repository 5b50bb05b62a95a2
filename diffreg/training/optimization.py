"""How weights change: Adam or AdamW, its rate, the scale of float16, a running mean of weights.

Nothing here waits for the device: rate, number of the step and what stops a run are tensors there.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from diffreg.training.checkpoint import load_weights
from diffreg.training.config import Config, OptimizerConfig, TrainingConfig

_SMALLEST_SCALE = 1.0  # of a float16 loss: where its gradient is not finite, the loss is to blame


class Optimization:
    """The optimiser of a network, and what goes with it.

    Args:
        network: whose parameters are changed.
        config: of the run.
        device: of the network.

    What a checkpoint needs of it is `state()`, which `load` takes; a run goes on to the same bits.

    Attributes:
        stopped: (), 1 from the step on whose loss or gradient was not finite; no parameter changes
            from then on (statistics of batches do).
    """

    def __init__(self, network: nn.Module, config: Config, device: torch.device) -> None:
        settings = config.optimizer
        self.network, self.config = network, config
        self.stopped = torch.zeros((), dtype=torch.float32, device=device)
        self.optimizer = _optimizer(network, settings, device)
        half = config.training.precision == "float16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        if not half:  # the scaler has one of its own
            self.optimizer.found_inf = self.stopped  # type: ignore[attr-defined]
        self.averaged: nn.Module | None = None
        if settings.average:
            self.averaged = copy.deepcopy(network).requires_grad_(False)
        self._new_part = torch.ones_like(self.stopped)  # of the mean: the weights of the step

    @property
    def result(self) -> nn.Module:
        """The network to measure and to keep: that of the mean weights, where there are such."""
        return self.network if self.averaged is None else self.averaged

    def rate(self, step: int) -> float:
        """That of a step, 0 being the first."""
        return learning_rate(self.config.optimizer, self.config.training.steps, step)

    def prepare(self, step: int) -> float:
        """Put on the device what differs from step to step; the rate of that step."""
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        if self.averaged is not None:
            self._new_part.fill_(1 - self.config.optimizer.average if step else 1.0)
        return rate

    def begin(self) -> None:
        """No gradient is left of the step before, nor of one that was broken off."""
        self.optimizer.zero_grad()
        if self.scaler.is_enabled():  # one, a capture's, may have ended before the scaler's update
            self.scaler._per_optimizer_states.clear()

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradient to those that are there."""
        self.scaler.scale(loss).backward()

    def change(self, loss: Tensor) -> Tensor:
        """Change the weights by the gradients that are there, of a loss; the gradient's norm."""
        norm = self._gradient_norm()
        # 0 times what is not finite is no number, which counts as true.
        self.stopped.logical_or_(0 * loss + 0 * self._blamed(norm))
        if self.scaler.is_enabled():  # which looks at gradients alone
            for found in self.scaler._found_inf_per_device(self.optimizer).values():
                found.copy_(torch.maximum(found, self.stopped))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average()
        return norm

    def _gradient_norm(self) -> Tensor:
        """The norm of the gradient, which is shortened where it is too long for the settings."""
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.network.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        longest = self.config.optimizer.clip_norm
        if longest is not None:
            nn.utils.clip_grads_with_norm_(parameters, longest, norm)
        return norm

    def _blamed(self, norm: Tensor) -> Tensor:
        """A gradient's norm; 0 where it may not be finite by float16's range alone.

        A smaller scale mends that, and such a step changes no weight.
        """
        if not self.scaler.is_enabled():
            return norm
        scale = self.scaler.scale(torch.ones_like(norm))
        return torch.where(scale > _SMALLEST_SCALE, 0, norm)

    @torch.no_grad()
    def _average(self) -> None:
        """The mean goes towards the weights, what else a network holds is as it is in it."""
        if self.averaged is None:
            return
        part = self._new_part * (1 - self.stopped)
        for mean, weight in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(weight, part)
        for kept, now in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            kept.copy_(now)

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
        self.stopped.zero_()
        # How Adam computes is this run's, on whatever device and by whatever version it began.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**contents["optimizer"], "param_groups": groups})
        self.scaler.load_state_dict(contents.get("scaler", {}))
        if self.averaged is not None:
            load_weights(self.averaged, contents["weights"], path)


def _optimizer(
    network: nn.Module, settings: OptimizerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """On a CPU the fused kernel takes half the time, on a GPU a CUDA graph can hold it."""
    options: dict[str, Any] = {
        "lr": torch.zeros((), dtype=torch.float32, device=device),
        "fused": True,
        "capturable": device.type == "cuda",
    }
    if settings.weight_decay:
        decay = settings.weight_decay
        return torch.optim.AdamW(network.parameters(), weight_decay=decay, **options)
    return torch.optim.Adam(network.parameters(), **options)


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


def parts_of(size: int, count: int) -> list[slice]:
    """A batch of a size in so many parts, which differ by one at most.

    Example:
        >>> from diffreg.training.optimization import parts_of
        >>> parts_of(5, 2)
        [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(size * k // count, size * (k + 1) // count) for k in range(count)]


def check_parts(settings: TrainingConfig, processes: int) -> None:
    """Raises where a batch has less pairs than it is split into."""
    parts = processes * settings.accumulate
    if settings.batch_size < parts:
        each = f", each in {settings.accumulate} parts" if settings.accumulate > 1 else ""
        raise ValueError(
            f"training.batch_size must be at least the {processes} processes{each}, got "
            f"{settings.batch_size}"
        )
