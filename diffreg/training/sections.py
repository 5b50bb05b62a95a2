"""The sections of a run's settings: frozen dataclasses, whose words are those of --print-config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffreg.affine.parameters import KINDS
from diffreg.data.known import TERMS
from diffreg.ops.local_correlation import check_window
from diffreg.training.own import is_path, is_plain

AFFINE = ("auto", "none", *KINDS)


@dataclass(frozen=True)
class DataConfig:
    """Which pairs to train on, and which to validate on.

    Args:
        images: folders and image files, of which every ordered pair is taken; or one manifest
            (`diffreg.data.manifest`): pairs, or images, of which every pair of one group is taken.
            Volumes are taken whole where `model.dimensions` is 3, else slice by slice;
            `augmentation.crop` makes patches of them.
        slices: of volumes, along their last axis; none: all of them.
        validation: the same of the pairs to validate on.
        validation_groups: or the groups of `images` that are kept out to validate on.
        validation_share: or which part of its groups is, drawn by the seed; of images without any,
            of its files, whose pairs with others are left out.
        name: in place of `images` the import path of a torch Dataset of your own,
            "my_package.data:Pairs" (the protocol is in docs/training.md).
        settings: its keywords.
        validation_settings: those of the same to validate on; none: no validation.
        workers: processes that read ahead, a dataset of your own or the `cache`; 0: the run's own.
        cache: a folder that keeps each pair of images as it is made ready, to be read from there:
            they need not fit into memory. What changes is made anew, and nothing is removed; left
            out: they are held in memory.
        affine: how moving images are moved as a whole before anything else, as `register --affine`
            does: "auto", "translation", "rigid", "similarity", "affine", or "none", by the headers
            alone. Found once for each pair, and kept in the `cache`, or else in a hidden folder
            .diffreg beside the data.

    Raises:
        ValueError: more than one way to validate, a share out of range, or settings that are of
            the other kind of data.
    """

    images: tuple[str, ...] = ()
    slices: tuple[int, ...] = ()
    validation: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    validation_share: float = 0.0
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    validation_settings: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    cache: str = ""
    affine: str = "none"

    def __post_init__(self) -> None:
        self._check_own()
        if self.affine not in AFFINE:
            raise ValueError(f"affine must be one of {', '.join(AFFINE)}, got {self.affine!r}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be in [0, 1), got {self.validation_share}")
        ways = (self.validation, self.validation_groups, self.validation_share)
        if sum(map(bool, ways)) > 1:
            raise ValueError(
                "validation, validation_groups and validation_share are three ways to say one "
                "thing; give one"
            )

    def _check_own(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        for table in (self.settings, self.validation_settings):
            if not is_plain(table):
                raise ValueError(f"settings must be what a checkpoint can hold, got {table!r}")
        own = ("settings", "validation_settings")
        ways = ("validation", "validation_groups", "validation_share")
        images = ("images", "slices", *ways, "cache", "affine")
        keys = images if self.name else own  # tables are no attributes of the class, but empty
        wrong = [key for key in keys if getattr(self, key) != getattr(DataConfig, key, {})]
        if wrong and self.name:
            raise ValueError(f"{wrong[0]} is for images, name for a dataset of your own; give one")
        if wrong:
            raise ValueError(f"{wrong[0]} is for a dataset of your own: give its import path, name")
        if self.name and not is_path(self.name):
            raise ValueError(f"name must be a path, package.module:Class, got {self.name!r}")


# Terms of the objective that need more than the two images; each has its weight in [objective].
EXTRA = (*TERMS, "inverse_consistency")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised; see `diffreg.losses.Objective`.

    Args:
        similarity: its name, or a mixture such as {ncc = 1.0, lncc = 0.2}; a measure of your own by
            its import path, "my_package.losses:nmi", (warped, fixed, mask) -> (N,); left out: that
            of the preset, ncc + 0.2 lncc for "default".
        weights: a preset, or 4 numbers (similarity, diffusion, bending, determinant).
        padding: of the warp, "border" or "zeros".
        penalty: of the determinant.
        threshold: of the penalty; left out: its own.
        window: side of the box of "lncc", voxels, odd; left out: the preset's, 9 but for 5 of
            "volume".
        labels: weight of 1 - Dice of the warped moving labels and the fixed ones.
        landmarks: weight of the mean squared distance of the points, voxels^2.
        displacement: weight of the mean distance from the displacement that is known, voxels.
        inverse_consistency: weight of the mean squared distance to which the ways there and back
            lead, voxels^2. Above 0 both ways are trained, and the objective is their mean.

    Raises:
        ValueError: a weight that is negative, or a window that is even or not positive.
    """

    similarity: str | dict[str, float] | None = None
    weights: str | tuple[float, float, float, float] = "default"
    padding: str = "border"
    penalty: str = "hyperelastic"
    threshold: float | None = None
    window: int | None = None
    labels: float = 0.0
    landmarks: float = 0.0
    displacement: float = 0.0
    inverse_consistency: float = 0.0

    def __post_init__(self) -> None:
        for name in EXTRA:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number >= 0, got {getattr(self, name)}")
        if self.window is not None:
            check_window(self.window)


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, or AdamW where weights decay.

    Args:
        learning_rate: of the first step after the warm-up.
        final_learning_rate: of the last step, reached by half a cosine; left out: the first one.
        warmup_steps: in which the rate grows from 0 in equal parts.
        clip_norm: a gradient longer than this is shortened to it; left out: none is.
        weight_decay: AdamW's, of all weights, times the rate a step; 0: Adam.
        average: the part of the running mean of the weights that a step leaves, such as 0.999; what
            is validated, and what a checkpoint registers with, is the mean; 0: there is none.

    Raises:
        ValueError: a number that is out of range.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float | None = None
    warmup_steps: int = 0
    clip_norm: float | None = None
    weight_decay: float = 0.0
    average: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be a number >= 0, got {self.weight_decay}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be in [0, 1), got {self.average}")
        for name in ("learning_rate", "final_learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number > 0, got {value}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {self.warmup_steps}")


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, on what, and where the results go.

    Args:
        out: the folder of the checkpoints and the log.
        steps: optimisation steps.
        batch_size: pairs a step, of all processes together.
        seed: of the initial weights and of every sample.
        start: the checkpoint whose weights the run begins with, a file or one of
            `diffreg.training.pretrained.pretrained_networks()`; "": random weights. A word
            without a suffix is a file where there is one of that name, else a network's.
        checkpoint_every: steps from one checkpoint to the next.
        validate_every: steps from one validation to the next, where there are pairs to validate on.
        patience: validations without a better one after which the run ends; 0: it never does.
        device: "cpu", "cuda", or "auto", a GPU where the kernels run.
        precision: "float32", or "bfloat16" or "float16" inside the network (autocast); the loss of
            "float16" is scaled, and a step whose gradient leaves its range changes no weight.
        accumulate: parts that a batch is taken in, one after the other, each with a backward pass
            of its own, which needs the memory of one part.
        activation_checkpointing: keep little of the network between its passes and compute the rest
            anew in the backward one: less memory, more time, the same bits on a CPU. Of LU-net, and
            of networks with an attribute of this name, which is set.
        channels_last: the network's memory order; on a CPU it halves the time of a step on images
            and takes a fifth to a half off one on volumes.
        compile: the network by torch.compile.
        graph: on a GPU, each step as a CUDA graph, to the same bits; one process alone.
        threads: of torch; 0 leaves torch's own choice. Torch's convolutions give other bits with
            another number.
        tensorboard: write the log for TensorBoard too, into `out`/tensorboard.
        callbacks: import paths of who is told how the run goes, "my_package:WandB"
            (`diffreg.training.Callback`); a class is made without arguments.
        resume: continue from the checkpoint in `out`, if there is one.

    Raises:
        ValueError: a number out of range, or a word that is not known.
    """

    out: str = "run"
    steps: int = 1000
    batch_size: int = 8
    seed: int = 0
    start: str = ""
    checkpoint_every: int = 100
    validate_every: int = 100
    patience: int = 0
    device: str = "auto"
    precision: str = "float32"
    accumulate: int = 1
    activation_checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    graph: bool = True
    threads: int = 0
    tensorboard: bool = False
    callbacks: tuple[str, ...] = ()
    resume: bool = False

    def __post_init__(self) -> None:
        at_least = {"steps": 1, "batch_size": 1, "seed": 0, "checkpoint_every": 1, "threads": 0}
        at_least |= {"validate_every": 1, "patience": 0, "accumulate": 1}
        for name, lowest in at_least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        words = {"device": ("auto", "cpu", "cuda"), "precision": ("float32", "bfloat16", "float16")}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
