"""`diffreg export`: a network out of its run, as a small checkpoint, torch's program or ONNX.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

# Ending -> how its form is asked for.
_FORMS = {".pt": "leave out --pt2 and --onnx", ".pt2": "give --pt2", ".onnx": "give --onnx"}


def add_export(command: argparse.ArgumentParser) -> None:
    """Which network, into which file."""
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a trained network's file, or one that comes with diffreg: lunet-any (volumes), "
        "lunet-any-2d, lunet-cardiac-mr or lunet-mr-ct (slices)",
    )
    command.add_argument("-o", "--out", required=True, help="the file to write: .pt, .pt2 or .onnx")
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--pt2",
        action="store_true",
        help="a program that torch.export.load reads; else a checkpoint without its optimiser",
    )
    form.add_argument("--onnx", action="store_true", help="ONNX; needs diffreg[onnx]")
    command.add_argument(
        "--warped", action="store_true", help="the program also gives the warped moving image"
    )
    command.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="of the images that a network of one's own takes, one number an axis, where it does "
        "not take multiples of 32",
    )
    command.add_argument(
        "--trust",
        action="store_true",
        help="import, which runs code, what the checkpoint names that does not come with diffreg",
    )
    command.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Write the network, and say what it takes."""
    from diffreg.system.files import require_output
    from diffreg.training.export import export_checkpoint
    from diffreg.training.pretrained import checkpoint_path

    path = checkpoint_path(options.checkpoint)
    out = require_output(options.out, [path])
    ending = ".onnx" if options.onnx else ".pt2" if options.pt2 else ".pt"
    if out.suffix != ending and out.suffix in _FORMS:
        asked = f"for {out.suffix} {_FORMS[out.suffix]}"
        raise ValueError(f"{out}: the name must end in {ending}; {asked}")
    if options.pt2 or options.onnx:
        print(f"{out}: {_write(options, path, out)}")
        return 0
    if options.warped or options.size:
        raise ValueError("--warped and --size are of a program: give --pt2 or --onnx")
    export_checkpoint(path, out)
    print(f"{out}: {out.stat().st_size / 2**20:.2f} MiB; register --checkpoint {out} takes it")
    return 0


def _write(options: argparse.Namespace, path: Path, out: Path) -> str:
    """Write a program; what it is."""
    from diffreg.cli.options import find_modules_in
    from diffreg.training.checkpoint import load_network, read_checkpoint
    from diffreg.training.config import Config
    from diffreg.training.export import check_out, exported, facts, shape_of, write_program
    from diffreg.training.onnx import check_tools, write_onnx

    check_out(out, ".onnx" if options.onnx else ".pt2")
    if options.onnx:
        check_tools()
    if options.trust:
        find_modules_in(Path())
    network = load_network(path, trust=options.trust)["network"]
    dimensions = Config.from_dict(read_checkpoint(path)["config"]).model.dimensions
    program = exported(network, dimensions, _size(options, dimensions), options.warped)
    words = ""
    if options.onnx:
        difference = write_onnx(out, program, facts(path))
        words = f"; onnxruntime differs by {difference:.1e} voxels at most on noise"
    else:
        write_program(out, program, facts(path))
    gives = "(displacement, warped)" if options.warped else "displacement"
    shape = ", ".join(map(str, shape_of(program)))
    return f"(moving, fixed) -> {gives}, images ({shape}){words}"


def _size(options: argparse.Namespace, dimensions: int) -> tuple[int, ...] | None:
    if options.size is not None and (len(options.size) != dimensions or min(options.size) < 1):
        raise ValueError(f"--size must be {dimensions} numbers of 1 or more, got {options.size}")
    return None if options.size is None else tuple(options.size)
