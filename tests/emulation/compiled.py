"""The kernels compiled by nvcc, apart from the installed core, which may be without them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from emulation.build import ROOT, alone

from diffreg.ops import _core

FOLDER = ROOT / "build" / "cuda"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where pip puts cmake and ninja


def cmake(*arguments: object) -> str:
    ran = subprocess.run(
        ["cmake", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": PATH},
    )
    if ran.returncode:
        raise RuntimeError((ran.stdout + ran.stderr)[-6000:])
    return ran.stdout


def settings(source: Path) -> list[str]:
    """What setup.py tells CMake of this environment, for a build of the source elsewhere."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    return [
        *("-S", str(source), "-G", "Ninja"),
        f"-DDIFFREG_VERSION={_core.build_info()['version']}",
        f"-DDIFFREG_TORCH_DIR={torch}",
    ]


def package() -> Path | None:
    """A folder to import a diffreg from whose core has the kernels; None where there is no nvcc.

    An nvcc that warns, of spilled registers too, is an error. What has not changed is not compiled
    again.
    """
    if _core.build_info()["cuda_architectures"] != "none":
        return ROOT
    site = FOLDER / "site"
    with alone(FOLDER):
        said = cmake(
            *settings(ROOT),
            *("-B", FOLDER, "-DDIFFREG_CUDA=auto", "-DDIFFREG_STRICT=ON"),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={site / 'diffreg'}",
        )
        if "no nvcc was found" in said:
            return None
        cmake("--build", FOLDER, "--target", "_core")
        for path in (ROOT / "diffreg").iterdir():
            link = site / "diffreg" / path.name
            if not path.name.startswith(("_core.", "__pycache__")):
                link.unlink(missing_ok=True)
                link.symlink_to(path)
    return site
