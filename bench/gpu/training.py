"""A training step and the drawing of its batch: `diffreg bench`'s rows, on few sizes."""

from rows import Trial, put
from shapes import device, is_dry

from diffreg.benchmark.network import training_step

# Model, size, batch.
STEPS = (("lunet", 128, 8), ("lunet", 256, 32), ("sn", 128, 8), ("lunet", 256, 8))
DRY_STEPS = (("lunet", 16, 2),)


def main() -> None:
    trial = Trial()
    for model, size, batch in DRY_STEPS if is_dry() else STEPS:
        with trial("training step", model=model, shape=[batch, 1, size, size]):
            seconds = 0.0 if is_dry() else 1.5
            row = training_step(model, size, batch, device(), False, seconds)
            put(name="training step", **row)
    trial.end()


if __name__ == "__main__":
    main()
