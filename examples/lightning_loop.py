"""Lightning's loop with diffreg's operators: a network of images or volumes, trained and measured.

    pip install lightning
    python examples/lightning_loop.py --steps 200

`Registration` takes any network (moving, fixed) -> displacement in voxels. What Lightning brings
(devices, precision="bf16-mixed", strategies, loggers, checkpoints) holds for it: the operators are
torch's, and run on the device that their tensors are on.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from side_by_side import blobs
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from diffreg.losses import Objective
from diffreg.models import build_model
from diffreg.ops import jacobian_determinant

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it could use
    import lightning


class Registration(lightning.LightningModule):
    """A network, diffreg's objective and Adam; batches are pairs (moving, fixed), (N, 1, *S)."""

    def __init__(self, network: nn.Module, rate: float = 1e-3) -> None:
        super().__init__()
        self.network, self.rate = network, rate
        self.objective = Objective()  # 60 (ncc + 0.2 lncc) + E1 + 30 E2 + 3 E_det

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.network(moving, fixed)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        moving, fixed = batch
        terms = self.objective(moving, fixed, self(moving, fixed))
        loss = terms.total.mean()
        self.log("loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        moving, fixed = batch
        displacement = self(moving, fixed)
        terms = self.objective(moving, fixed, displacement)
        folded = jacobian_determinant(displacement, reduce="min") <= 0
        measured = {"similarity": terms.similarity.mean(), "folded": folded.float().mean()}
        self.log_dict(measured, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Train on pairs of soft blobs; what was measured of pairs not trained on, before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=64, help="of the images")
    parser.add_argument("--pairs", type=int, default=4, help="in a batch")
    options = parser.parse_args(arguments)
    lightning.seed_everything(0, verbose=False)
    training = TensorDataset(*blobs(16 * options.pairs, options.size, seed=1))
    others = TensorDataset(*blobs(options.pairs, options.size, seed=2))
    loader = DataLoader(training, options.pairs, shuffle=True)
    kept_out = DataLoader(others, options.pairs)
    trainer = lightning.Trainer(
        max_steps=options.steps,
        accelerator="auto",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=False,
    )
    module = Registration(build_model("lunet"))
    before = trainer.validate(module, kept_out, verbose=False)
    trainer.fit(module, loader)
    after = trainer.validate(module, kept_out, verbose=False)
    for title, (measured,) in (("before", before), ("after", after)):
        words = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        print(f"{title}: {words}")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main()
