"""ONNX of an exported network: `warp`, which `integrate` is made of, becomes a GridSample."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from diffreg.system.atomic import replacing
from diffreg.system.extras import require
from diffreg.training.export import check_out, free_sizes

OPSET = 20  # the first whose GridSample takes volumes
INPUTS, OUTPUTS = ["moving", "fixed"], ["displacement", "warped"]
_ALLOWED = 1e-3  # voxels that onnxruntime may be off: its sums and places are rounded otherwise
_FLOAT = 1  # float32, in ONNX's numbers


def write_onnx(out: str | Path, program: ExportedProgram, said: dict[str, str]) -> float:
    """Write a program as ONNX, with its weights inside, whole or not at all.

    onnxruntime runs it before it has its name, and has to give what the program gives.

    Args:
        out: the file, named .onnx.
        program: of `diffreg.training.export.exported`.
        said: of `diffreg.training.export.facts`, the model's metadata.

    Returns:
        The largest difference from the program, voxels.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is missing.
        ValueError: the program has an operator that ONNX has no form of, or gives something else.

    Example: `write_onnx("net.onnx", program, facts("run/best.pt"))`
    """
    check_out(out, ".onnx")
    found = translated(program, OUTPUTS[: len(program.graph_signature.user_outputs)])
    found.model.metadata_props.update(said)
    with replacing(out) as temporary:
        found.save(temporary, external_data=False)
        difference = _difference(temporary, program)
        if not difference < _ALLOWED:
            raise ValueError(
                f"the network cannot be written as ONNX: onnxruntime's displacement is "
                f"{difference:.3g} voxels off"
            )
    return difference


def translated(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    """A program of two images, or of an image and a displacement, as torch's ONNXProgram.

    Args:
        program: what is translated; of diffreg's operators it may use `warp` and `integrate`.
        outputs: their names.

    Raises:
        ImportError, ValueError: as `write_onnx`.
    """
    check_tools()
    with free_sizes(), _quiet():
        try:
            return torch.onnx.export(
                program,
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=outputs,
                custom_translation_table={torch.ops.diffreg.warp.default: _warp},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise ValueError(f"the network cannot be written as ONNX: {reason}") from error


def _difference(path: Path, program: ExportedProgram) -> float:
    """How far onnxruntime's displacement is from the program's, voxels, on the traced shape."""
    import onnxruntime

    images: Any = program.example_inputs
    with torch.no_grad():
        ours = program.module()(*images[0])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    values = (image.numpy() for image in images[0])
    theirs = session.run(OUTPUTS[:1], dict(zip(INPUTS, values, strict=True)))[0]
    displacement = ours[0] if isinstance(ours, tuple) else ours
    return float((displacement - torch.from_numpy(theirs)).abs().max())


def check_tools() -> None:
    """Raises an ImportError where what writes ONNX is missing."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        require(package, "writing ONNX", "onnx")


def _warp(
    moving: Any, displacement: Any, interpolation: str = "linear", padding: str = "border"
) -> Any:
    """torch.ops.diffreg.warp by GridSample, whose places are -1 and 1 at the outermost voxels."""
    from onnxscript import opset20 as op

    axes = len(moving.shape) - 2
    if (interpolation, axes) == ("cubic", 3) or (interpolation, padding) == (
        "nearest",
        "reflection",
    ):
        raise NotImplementedError(
            f"warp of {axes}-D by {interpolation}, {padding} has no form in it"
        )
    places = []
    for k in range(axes):
        count = op.Squeeze(op.Shape(displacement, start=2 + k, end=3 + k))
        line = op.Cast(op.Range(0, count, 1), to=_FLOAT)
        line = op.Reshape(line, [-1 if axis == k else 1 for axis in range(axes)])
        place = op.Squeeze(op.Slice(displacement, [k], [k + 1], [1]), [1]) + line
        if interpolation == "nearest":  # GridSample's own rounds halves to even
            place = op.Floor(place + 0.5)
        last = op.Cast(op.Shape(moving, start=2 + k, end=3 + k), to=_FLOAT) - 1.0
        places.append(op.Unsqueeze(place * 2.0 / op.Max(last, 1.0) - 1.0, [axes + 1]))
    grid = op.Concat(*reversed(places), axis=axes + 1)  # the last axis comes first
    return op.GridSample(moving, grid, align_corners=1, mode=interpolation, padding_mode=padding)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's lines about packages that it could use, and about what it will do without."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
