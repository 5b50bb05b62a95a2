"""Takes out each barrier, fence and bound check of the kernels in turn, and expects a failure.

    python tests/emulation/mutate.py [--list] [--sample N --seed S] [--only TEXT]

A mutant is built and run under the sanitizers against the CPU operators; one that nothing kills is
a survivor, and the exit status is then 1. A sample is drawn by the commit, so that whoever has the
commit can draw it again.
"""

import argparse
import hashlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from emulation import build

CSRC = build.ROOT / "csrc"
# Whose cases run a shared header's code.
USERS = {
    # warp's blocks reduce tile after tile with nothing else between that parts them.
    "block_reduce.h": ("warp", "parallel_level_sets"),
    "cell_columns.h": ("jacobian_determinant",),
    "columns.h": ("deformation_energy",),
    "gradient_columns.h": ("parallel_level_sets",),
    "mask_total.h": ("parallel_level_sets",),
    "pack_columns.h": ("parallel_level_sets",),
    "quad.h": ("local_correlation",),
    "row_exchange.h": ("jacobian_determinant", "parallel_level_sets"),
    "tile.h": ("warp",),
    "voxel_tiles.h": ("correlation",),
}
# Headers of an operator's own that hold kernel code.
HEADERS = (
    "correlation/tile_moments.h",
    "deformation_energy/energy_columns.h",
    "local_correlation/box_march.h",
    "local_correlation/march_sources.h",
    "mutual_information/counting.h",
    "mutual_information/histogram_cells.h",
    "mutual_information/intensity_ranges.h",
    "warp/forward_kernels.h",
    "warp/gather.h",
    "warp/points.h",
    "warp/thread_voxels.h",
)
CASES = {
    "affine_warp": ("affine-linear-zeros", "affine-map-3d", "affine-cubic-border-3d"),
    "correlation": ("correlation", "correlation-mask"),
    "deformation_energy": ("energy-hyperelastic", "energy-hyperelastic-3d"),
    "gradient_scale": ("scale-mask",),
    "jacobian_determinant": ("determinant-min", "determinant-none", "determinant-min-3d"),
    "local_correlation": ("lncc-9-mask", "lncc-33-mask-3d"),
    "mutual_information": ("mi-mask", "mi-many"),
    "parallel_level_sets": ("pls-mask", "pls-mask-3d"),
    "registration_objective": ("objective-mixture",),
    "warp": ("warp-linear-border", "warp-linear-border-3d", "warp-nearest-zeros"),
}
# What is taken out, and what stands there instead.
FAULTS = {
    r"__syncthreads\(\);": ";",
    r"__threadfence\(\);": ";",
    # With what it is asked of, where it is a method.
    r"(?<!bool )\b(\w+\.)*inside(_axis)?\(": "([](auto&&...) { return true; })(",
    r"(?<!int64_t )(?<!int32_t )\bclamped\(": "([](int64_t index, int64_t) { return index; })(",
}


@dataclass(frozen=True)
class Mutant:
    path: Path  # within csrc
    start: int
    end: int
    text: str
    line: int

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}"

    @property
    def operators(self) -> tuple[str, ...]:
        """To build and run."""
        folder = self.path.parent.name
        return USERS[self.path.name] if folder == "common" else (folder,)


def mutants() -> list[Mutant]:
    found = []
    shared = [CSRC / "common" / name for name in USERS]
    own = [CSRC / name for name in HEADERS]
    for path in [*sorted(CSRC.glob("*/*.cu")), *own, *shared]:
        source = path.read_text()
        for pattern, text in FAULTS.items():
            for match in re.finditer(pattern, source):
                line = source.count("\n", 0, match.start()) + 1
                found.append(Mutant(path.relative_to(CSRC), *match.span(), text, line))
    return sorted(found, key=lambda m: (str(m.path), m.start))


def seed_of(root: Path = build.ROOT) -> int:
    """Of the commit that is checked out; of the kernels' sources where there is no git."""
    if (root / ".git").exists() and shutil.which("git"):
        head = ["git", "-C", str(root), "rev-parse", "--verify", "HEAD"]
        found = subprocess.run(head, capture_output=True, text=True)
        if found.returncode == 0:
            return int(found.stdout[:8], 16)
    digest = hashlib.sha256()
    for path in sorted((root / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return int(digest.hexdigest()[:8], 16)


def killed_by(mutant: Mutant, folder: Path) -> str | None:
    """Which flavour kills the mutant; None where none does."""
    source = (CSRC / mutant.path).read_text()
    changed = source[: mutant.start] + mutant.text + source[mutant.end :]
    barrier = source.startswith("__syncthreads", mutant.start)
    flavours = ("race", "address") if barrier else ("address", "race")
    csrc = copied(folder)
    (csrc / mutant.path).write_text(changed)
    return next((f for f in flavours if not passes(f, csrc, mutant.operators)), None)


def copied(folder: Path) -> Path:
    csrc = folder / "csrc"
    shutil.rmtree(csrc, ignore_errors=True)
    return shutil.copytree(CSRC, csrc)


def passes(flavour: str, csrc: Path, operators: tuple[str, ...]) -> bool:
    """Whether the operators' cases agree with the CPU, and the sanitizer reports nothing."""
    library = build.build(flavour, csrc, operators)
    command = [sys.executable, str(Path(__file__).parent / "run.py"), "--flavour", flavour]
    command += ["--library", str(library), "--case"]
    command += [case for operator in operators for case in CASES[operator]]
    ran = subprocess.run(command, capture_output=True, env=build.environment(flavour))
    library.unlink()
    return ran.returncode == 0


def check_control(every: list[Mutant], folder: Path) -> None:
    """The unchanged kernels must pass, or every mutant would count as killed."""
    csrc = copied(folder)
    for operators in sorted({mutant.operators for mutant in every}):
        for flavour in ("address", "race"):
            if not passes(flavour, csrc, operators):
                raise SystemExit(f"unchanged, {', '.join(operators)} fail ({flavour}) already")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--sample", type=int, help="as many at random instead of all")
    parser.add_argument("--seed", type=int, help="of the sample; that of the commit if not given")
    parser.add_argument("--only", default="", help="those whose file and line hold this text")
    options = parser.parse_args()
    every = [m for m in mutants() if options.only in m.name]
    if options.list:
        print("\n".join(m.name for m in every))
        return
    if options.sample:
        seed = seed_of() if options.seed is None else options.seed
        print(f"seed {seed}", flush=True)
        every = random.Random(seed).sample(every, min(options.sample, len(every)))
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        if not options.sample:  # the tests around a sample run the unchanged kernels themselves
            check_control(every, Path(folder))
        for mutant in every:
            by = killed_by(mutant, Path(folder))
            print(f"{mutant.name}: {'killed (' + by + ')' if by else 'SURVIVED'}", flush=True)
            if by is None:
                survivors.append(mutant.name)
        if not options.sample:
            check_control(every, Path(folder))
    print(f"{len(every)} mutants, {len(survivors)} survivors")
    raise SystemExit(1 if survivors else 0)


if __name__ == "__main__":
    main()
