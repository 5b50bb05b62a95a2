"""Builds the compiled core with CMake; all else about the package stands in pyproject.toml."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).parent
# With what pyproject.toml says of them: a build without isolation finds what the environment has.
NEEDED = ("torch>=2.11", "setuptools>=77", "cmake>=3.22", "ninja")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # pip leaves cmake and ninja there


def version() -> str:
    text = (ROOT / "diffreg" / "__init__.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


def has_core() -> bool:
    """Whether a core is built: on x86-64 Linux, or as DIFFREG_BUILD says."""
    asked = os.environ.get("DIFFREG_BUILD", "auto")
    if asked not in ("auto", "on", "off"):
        raise SystemExit(f"DIFFREG_BUILD must be auto, on or off, got {asked}")
    here = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    return asked == "on" or (asked == "auto" and here)


def check_environment() -> None:
    """What is missing, and what to type, as the one line of the build's output."""
    try:
        import torch
    except ImportError:
        found = "finds no torch"
    else:
        missing = [tool for tool in ("cmake", "ninja") if not shutil.which(tool, path=PATH)]
        old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11)
        if not missing and not old:
            return
        found = f"finds torch {torch.__version__}, too old" if old else f"finds no {missing[0]}"
    needed = " ".join(f"'{name}'" if ">" in name else name for name in NEEDED)
    raise SystemExit(
        f"diffreg's build {found}; type: pip install {needed} && pip install --no-build-isolation ."
    )


class Metadata(dist_info):
    """pip asks for it first, before it downloads what diffreg needs at run time."""

    def run(self) -> None:
        if has_core():
            check_environment()
        super().run()


class Wheel(bdist_wheel):
    """The core has nothing of Python in it: one wheel is for every version of it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt, and leaves the libraries where setuptools wants one."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # no name of a Python in it

    def build_extension(self, ext: Extension) -> None:
        check_environment()
        import torch

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One for each environment, kept: setuptools' own is thrown away after an editable install.
        key = f"{sys.executable} {torch.__file__} {torch.__version__}".encode()
        build = ROOT.resolve() / "build" / f"core-{hashlib.sha256(key).hexdigest()[:8]}"
        configure = [
            "cmake",
            *("-S", str(ROOT.resolve()), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=PATH)}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DDIFFREG_VERSION={version()}",
            f"-DDIFFREG_TORCH_VERSION={torch.__version__}",
            f"-DDIFFREG_TORCH_DIR={Path(torch.__file__).parent}",
            f"-DDIFFREG_TORCH_CUDA={torch.version.cuda or ''}",
        ]
        environment = {**os.environ, "PATH": PATH}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=environment)

    def copy_extensions_to_source(self) -> None:
        """For an editable install: setuptools itself knows of diffreg/_core alone."""
        super().copy_extensions_to_source()
        for library in (Path(self.build_lib) / "diffreg").glob("_cpu_*.so"):
            self.copy_file(str(library), str(ROOT / "diffreg" / library.name))


setup(
    version=version(),
    ext_modules=[Extension("diffreg._core", sources=[])] if has_core() else [],
    cmdclass={"build_ext": CMakeBuild, "dist_info": Metadata, "bdist_wheel": Wheel},
)
