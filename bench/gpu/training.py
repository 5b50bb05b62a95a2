"""A training step and the drawing of its batch: `diffreg bench`'s rows, on few sizes."""

from rows import Trial, put
from shapes import device, is_dry

from diffreg.benchmark.network import training_step

# Model, size, batch, dimensions; those that there are aims for first.
STEPS = (
    *(("lunet", 128, 8, 2), ("lunet", 256, 32, 2), ("sn", 128, 8, 2)),
    *(("lunet", 128, 1, 3), ("lunet", 256, 8, 2)),
)
DRY_STEPS = (("lunet", 16, 2, 2), ("lunet", 12, 1, 3))


def main() -> None:
    trial = Trial()
    for model, size, batch, dimensions in DRY_STEPS if is_dry() else STEPS:
        with trial("training step", model=model, shape=[batch, 1, *[size] * dimensions]):
            seconds = 0.0 if is_dry() else 1.5
            row = training_step(model, size, batch, device(), False, seconds, dimensions)
            put(name="training step", **row)
    trial.end()


if __name__ == "__main__":
    main()
