"""What leaves a run: a checkpoint to use, and a program that other code than diffreg's runs."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as tracing
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from diffreg import __version__
from diffreg.ops import warp
from diffreg.system.atomic import replacing
from diffreg.system.files import require_folder
from diffreg.training.checkpoint import affine_of, config_of, read_checkpoint, write_checkpoint
from diffreg.training.config import Config
from diffreg.training.own import check_displacement

# What a network is traced at: sizes that nothing divides, which ours take, then multiples of 32.
_SIZES = {2: ((37, 50), (64, 96)), 3: ((13, 18, 21), (32, 64, 96))}
_BATCH = 2
_ROUNDING = 1e-4  # of the largest displacement
_KEPT = ("versions", "needs", "weights", "step", "best", "spacing", "spacing_mm", "orientation")
FORM = "moving, fixed: (N, 1, *S), float32, of about [0, 1]; displacement: (N, D, *S), voxels, "
FORM += "component k along axis k of S: warped(p) = moving(p + displacement(p))"


def export_checkpoint(path: str | Path, out: str | Path) -> None:
    """Write a checkpoint with what using its network takes, and nothing of the run.

    The optimiser's state goes, and so do the names of pairs and folders. Nothing is imported.

    Args:
        path: the checkpoint.
        out: the file to write.

    Raises:
        FileNotFoundError, ValueError: it is no checkpoint; or `out` cannot be written to, or is a
            checkpoint that a run may want to go on from.

    Example: `export_checkpoint("run/best.pt", "net.pt")`
    """
    check_out(out, ".pt")
    contents = read_checkpoint(path)
    config = config_of(contents, path).to_dict()
    plain = Config().to_dict()
    for key in ("out", "start", "callbacks", "resume"):
        config["training"][key] = plain["training"][key]
    kept = {key: contents[key] for key in _KEPT if key in contents}
    affine = affine_of(path)
    kept |= {} if affine is None else {"affine": affine}
    write_checkpoint(out, {"config": {**config, "data": plain["data"]}, **kept})


def check_out(out: str | Path, ending: str) -> Path:
    """Refuse a file that cannot be written, or that a run may need.

    Args:
        out: the file.
        ending: what its name has to end in.

    Raises:
        ValueError: another ending; no folder to write into; or a checkpoint with its optimiser.
    """
    out = Path(out)
    if out.suffix != ending:
        raise ValueError(f"{out}: the name must end in {ending}")
    require_folder(out.absolute().parent, "the output's folder")
    if out.is_dir():
        raise ValueError(f"{out} is a folder, not a file")
    if ending == ".pt" and out.exists() and "optimizer" in _contents(out):
        raise ValueError(f"{out} is the checkpoint of a run, which could not go on: another name")
    return out


def _contents(path: Path) -> dict[str, Any]:
    try:
        return read_checkpoint(path)
    except ValueError:  # another file, which is replaced as by all other commands
        return {}


class _WithImage(nn.Module):
    """A network that also warps the moving image, its border repeated."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        displacement = self.network(moving, fixed)
        return displacement, warp(moving, displacement)


def exported(
    network: nn.Module,
    dimensions: int,
    size: Sequence[int] | None = None,
    warped: bool = False,
) -> ExportedProgram:
    """The network as a program of torch.export, free in the batch and, where it can be, in size.

    It is run beside the network, at several shapes where it is free, and has to give the same bits.

    Args:
        network: (moving, fixed) -> displacement, on the CPU; as `load_network` gives it.
        dimensions: D of its images.
        size: *S to trace it at; None: sizes that it takes are found.
        warped: the program also gives the warped moving image, (N, 1, *S).

    Returns:
        The program, (moving, fixed) -> displacement, or (displacement, warped).

    Raises:
        ValueError: a size that the network does not take, or a network that cannot be traced.

    Example:
        >>> import torch
        >>> from diffreg.models import build_model
        >>> from diffreg.training.export import exported
        >>> program = exported(build_model("lunet", widths=(2, 4)).eval(), 2)
        >>> program.module()(*torch.rand(2, 1, 1, 20, 31)).shape
        torch.Size([1, 2, 20, 31])
    """
    network = network.eval()
    sizes = _taken(network, _SIZES[dimensions] if size is None else [tuple(size)])
    whole: Any = _WithImage(network) if warped else network
    # Traced in the usual memory order, in which a batch of one is like any other.
    plain = deepcopy(whole).to(memory_format=torch.contiguous_format)
    free = dict.fromkeys((0, *range(2, 2 + dimensions)), Dim.AUTO)
    with torch.no_grad(), free_sizes():
        try:
            program = torch.export.export(
                plain, _images(sizes[0], _BATCH), dynamic_shapes=(free, free)
            )
        except Exception as error:  # whatever the code of a network raises when it is traced
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"the network cannot be exported by torch.export: {reason}") from error
    program.state_dict.update(whole.state_dict(keep_vars=True))
    _check_same(program, whole, sizes)
    return program


def free_sizes() -> Any:
    """Inside, what is traced at some sizes says of no size that it is not 1, or no multiple."""
    return tracing.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def _images(size: Sequence[int], batch: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand(2, batch, 1, *size, generator=random)
    return moving, fixed


def _taken(network: nn.Module, sizes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those of the sizes that the network takes."""
    found, reason = [], ""
    for size in sizes:
        moving, fixed = _images(size, 1)
        try:
            with torch.no_grad():
                displacement = network(moving, fixed)
        except Exception as error:  # a network of somebody's own says in its way what it takes
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        check_displacement(displacement, fixed)
        found.append(size)
    if not found:
        said = " nor ".join("x".join(map(str, size)) for size in sizes)
        raise ValueError(f"the network does not take images of {said} ({reason}): give their size")
    return found


def _close(found: Tensor, own: Tensor) -> bool:
    """To rounding of the largest number."""
    return bool((found - own).abs().max() <= _ROUNDING * own.abs().max())


def _check_same(program: ExportedProgram, network: nn.Module, sizes: Sequence[Any]) -> None:
    """Raises unless the program gives what the network does at the shapes that it should take.

    To rounding: some layers compute in another order where sizes are not fixed.
    """
    shape, run = shape_of(program), program.module()
    batches = (1, 3) if isinstance(shape[0], str) else (_BATCH,)
    free = all(isinstance(n, str) for n in shape[2:])
    cases = [(sizes[0], batch) for batch in batches] + [
        (size, _BATCH) for size in sizes[1:] if free
    ]
    for size, batch in cases:
        images = _images(size, batch)
        try:
            theirs = run(*images)
        except AssertionError as error:  # of what was traced: the sizes are not free
            raise ValueError(f"the exported program does not take {size}: {error}") from error
        with torch.no_grad():
            ours = network(*images)
        pairs = zip(theirs, ours, strict=True) if isinstance(ours, tuple) else [(theirs, ours)]
        if not all(_close(*pair) for pair in pairs):
            raise ValueError(
                f"the exported program gives another displacement than the network at {size}: does "
                "the network draw random numbers, or branch on values?"
            )


def shape_of(program: ExportedProgram) -> list[str | int]:
    """Of a program's images: a letter for each axis that is free, the size of one that is not.

    Example: `["N", 1, "Y", "X"]`
    """
    first = program.graph_signature.user_inputs[0]
    node = next(node for node in program.graph.nodes if node.name == first)
    shape = node.meta["val"].shape
    letters = ("N", "C", *"ZYX"[-(len(shape) - 2) :])
    return [n if isinstance(n, int) else name for n, name in zip(shape, letters, strict=True)]


def facts(path: str | Path) -> dict[str, str]:
    """What a program's file says beside the program: what it takes and gives, how to prepare it.

    Args:
        path: the checkpoint that it is of.
    """
    contents = read_checkpoint(path)
    return {
        "form": FORM,
        "normalization": json.dumps(asdict(config_of(contents, path).normalization)),
        "spacing": json.dumps(contents.get("spacing")),
        "diffreg": __version__,
    }


def write_program(out: str | Path, program: ExportedProgram, said: dict[str, str]) -> None:
    """Write what torch.export.load reads, whole or not at all.

    Args:
        out: the file, named .pt2.
        program: of `exported`.
        said: of `facts`, the file's extra file diffreg.json.

    Example: `write_program("net.pt2", program, facts("run/best.pt"))`
    """
    with (
        replacing(check_out(out, ".pt2")) as temporary,
        temporary.open("wb") as file,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torch: weights that are no plain array are on the CPU
        torch.export.save(program, file, extra_files={"diffreg.json": json.dumps(said)})
        file.flush()
        os.fsync(file.fileno())
