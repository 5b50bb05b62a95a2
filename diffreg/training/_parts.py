"""What a run is made of, and cannot be replaced: its checkpoints say what its settings say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_LOOP = "or write a loop of your own (examples/)"
_INSTEAD = {
    "config": "make a Trainer of the other settings",
    "out": "give the settings (training.out)",
    "ranks": "give ranks to the Trainer",
    "dataset": "give dataset to the Trainer",
    "validation": "give validation to the Trainer, beside dataset",
    "objective": f"give the settings (objective.*), which checkpoints keep, {_LOOP}",
    "optimizer": "a run that goes on from a checkpoint would not know it; give the settings "
    f"(optimizer.*), {_LOOP}",
    "network": "the optimizer holds the weights of the network that the settings name, and "
    "checkpoints are read by these; give network to the Trainer or the settings (model.name, "
    "training.start), load weights "
    f"with Trainer.network.load_state_dict, {_LOOP}",
}


class Parts:
    """Attributes that are set once; another value is refused with what to do instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _INSTEAD and name in vars(self):
            raise AttributeError(f"Trainer.{name} cannot be replaced: {_INSTEAD[name]}")
        super().__setattr__(name, value)


def check_parameters(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raises where a layer was replaced, which the optimizer would not train."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    ours = list(network.parameters())
    if len(ours) != len(trained) or any(a is not b for a, b in zip(ours, trained, strict=True)):
        raise ValueError(
            "parameters of Trainer.network were added, removed or replaced after the Trainer was "
            f"made, and would not be trained: {_INSTEAD['network']}"
        )
