"""Training of networks: settings, data order, checkpoints, logs, and the networks that ship."""

from diffreg.training.callbacks import Callback
from diffreg.training.checkpoint import load_network
from diffreg.training.config import Config, load_config
from diffreg.training.pretrained import load_pretrained, model_card, pretrained_networks
from diffreg.training.ranks import Ranks, joined
from diffreg.training.trainer import Trainer

__all__ = [
    "Callback",
    "Config",
    "Ranks",
    "Trainer",
    "joined",
    "load_config",
    "load_network",
    "load_pretrained",
    "model_card",
    "pretrained_networks",
]
