"""One registration of two files in a process of its own, on one thread, and what it costs."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from labelled import Pair
from tools import METHODS

from diffreg.data.transforms import read_field
from diffreg.registration.files import read_transform
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.pretrained import pretrained_networks
from diffreg.transforms import Field, flattened
from diffreg.transforms import write as write_field
from diffreg.transforms.places import place_of

TOOLS = Path(__file__).with_name("tools.py")
EXAMPLES = Path(__file__).parents[2] / "examples"
# Words of `diffreg register`: the pairs are on one grid already, as for all others.
USUAL = ("--device", "cpu", "--no-report", "--no-composites")
ALWAYS = ("--affine", "none", *USUAL)
SHIPPED = {
    f"diffreg {name}{ending}": ("--checkpoint", name, *words)
    for name in pretrained_networks()
    for ending, words in (("", ()), (", refined", ("--refine", "10")))
}
OURS: dict[str, tuple[str, ...]] = {
    "diffreg fast": ("--iterations", "30,30,10"),
    "diffreg": (),
    "diffreg long": ("--iterations", "100,100,60"),
    "diffreg mi": ("--similarity", "mi"),
    "diffreg ngf": ("--similarity", "ngf"),
    **SHIPPED,
}
# Gone on from what another tool found; what that took counts.
BEGUN = {
    f"diffreg from {tool}": tool
    for tool in ("greedy", "greedy NMI", "FireANTs 2 levels", "ConvexAdam defaults")
}
STEPS = ("--iterations", "20")
VOXELMORPH = "VoxelMorph"  # its network, which examples/own_networks.py hands to diffreg
NETWORKS: dict[str, tuple[str, ...]] = {
    "diffreg network": (),
    "diffreg network, refined": ("--refine", "10"),
    VOXELMORPH: ("--trust",),
}
IMPORTS = {VOXELMORPH: "torch, voxelmorph.nn.models"}
SETTINGS = {
    "identity": "",
    **{name: " ".join((*ALWAYS, *words)) for name, words in OURS.items()},
    **{name: " ".join(("--checkpoint FILE", *ALWAYS, *words)) for name, words in NETWORKS.items()},
    **{name: method.setting for name, method in METHODS.items()},
    **{
        name: " ".join((f"--start ITS_FIELD ({METHODS[tool].setting})", *USUAL, *STEPS))
        for name, tool in BEGUN.items()
    },
}
NAMES = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
ONE_THREAD = dict.fromkeys((*NAMES, "OPENBLAS_NUM_THREADS"), "1")
# A small process starts the one that is measured: what a process says of its child includes what
# it holds itself. It tells CPU seconds, user and system, and the largest resident size, KB.
STARTER = """\
import os, sys
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(child, 0)
with open(sys.argv[1], "w") as told:
    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=told)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


class Network(NamedTuple):
    """A checkpoint, and the names of the files that it was trained or validated on."""

    path: Path
    seen: frozenset[str]
    people: int  # whom it was trained on
    about: str

    def knows(self, pair: Pair) -> bool:
        return bool({pair.moving.name, pair.fixed.name} & self.seen)


def read_network(path: Path) -> Network:
    """Raises a ValueError where it is no checkpoint."""
    contents = read_checkpoint(path)
    trained, validated = map(_files, (contents["pairs"], contents["validation"]))
    model = contents["config"]["model"]["name"]
    about = f"{model}, {contents['step']} steps on {len(trained)} people"
    return Network(path, trained | validated, len(trained), about)


def _files(names: Iterable[str]) -> frozenset[str]:
    found = re.findall(r"\S+\.nii(?:\.gz)?", " ".join(names))
    return frozenset(Path(name).name for name in found)


def registered(
    pair: Pair, method: str, python: str | Path, network: Network | None = None
) -> tuple[np.ndarray, dict]:
    """The displacement (D, *S), voxels, float32, and what it cost.

    Args:
        python: that has the other tools.
        network: what `method` registers by, where it is one of NETWORKS.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    if method == "identity":
        shape = nib.load(pair.fixed).shape
        return np.zeros((len(shape), *shape), np.float32), {}
    with tempfile.TemporaryDirectory() as folder:
        if method in OURS:
            return ours(pair, (*ALWAYS, *OURS[method]), Path(folder))
        if method in BEGUN:
            return begun(pair, BEGUN[method], python, Path(folder))
        if method in NETWORKS:
            words = (*ALWAYS, "--checkpoint", network.path, *NETWORKS[method])
            u, cost = ours(pair, words, Path(folder), IMPORTS.get(method, "torch"))
            return u, cost | {"version": f"{cost['version']}: {network.about}"}
        out, cost = Path(folder) / "out", Path(folder) / "cost"
        cost = fresh([python, TOOLS, method, pair.fixed, pair.moving, out], cost)
        told = json.loads(out.with_suffix(".json").read_text())
        path = out.with_suffix(".nii")
        u = read_field(path if path.exists() else f"{out}.npz:u")[0].numpy()
    return u.astype(np.float32), cost | told


def ours(
    pair: Pair, words: Sequence, folder: Path, imports: str = "torch"
) -> tuple[np.ndarray, dict]:
    """As `registered`, by the command line; the search is the process beyond the imports."""
    images = ("register", pair.moving, pair.fixed, "-o", folder / "out")
    cost = fresh([sys.executable, "-m", "diffreg", *images, *words], folder / "cost")
    search = cost["cpu_s"] - importing(imports)
    cost |= {"search_s": search, "version": f"diffreg {version('diffreg')}"}
    whole = flattened(read_transform(folder / "out"), place_of("fixed", pair.fixed).grid)
    return whole.displacement[0].numpy(), cost


def begun(pair: Pair, tool: str, python: str | Path, folder: Path) -> tuple[np.ndarray, dict]:
    """As `ours`, from another tool's displacement; the cost is of both, one after the other."""
    u, cost = registered(pair, tool, python)
    start = folder / "start.nii.gz"
    write_field(start, Field(torch.from_numpy(u)[None], place_of("fixed", pair.fixed).grid))
    found, more = ours(pair, (*USUAL, "--start", start, *STEPS), folder)
    for name in ("cpu_s", "search_s"):
        more[name] += cost[name]
    more["peak_mb"] = max(more["peak_mb"], cost["peak_mb"])
    return found, more | {"version": f"{more['version']}: {cost['version']}"}


@cache
def importing(names: str) -> float:
    """CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return fresh([sys.executable, "-c", f"import {names}"], Path(folder) / "cost")["cpu_s"]


def fresh(command: Sequence, told: Path) -> dict:
    """CPU seconds and the largest resident size of a process on one thread.

    It runs in the folder of `told`: elastix leaves a file where it is.
    """
    asked = [sys.executable, "-S", "-c", STARTER, told, *command]
    words = [str(part.absolute() if isinstance(part, Path) else part) for part in asked]
    names = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(EXAMPLES)]))
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": names}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=told.parent)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"ended with {done.returncode}")
    seconds, kilobytes = map(float, told.read_text().split())
    return {"cpu_s": seconds, "peak_mb": kilobytes / 1024}
