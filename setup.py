"""Builds diffreg/_C with CMake; everything else about the package stands in pyproject.toml."""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent


def version() -> str:
    text = (ROOT / "diffreg" / "__init__.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt, and leaves the library where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        if not sys.platform.startswith("linux"):
            raise SystemExit(f"diffreg builds on Linux only, not on {sys.platform}")
        try:
            import pybind11
            import torch
        except ImportError as error:
            raise SystemExit(
                f"building diffreg needs {error.name} in this environment: install torch >= 2.11, "
                "pybind11, cmake and ninja, then pip install --no-build-isolation ."
            ) from None
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        configure = [
            "cmake",
            *("-S", str(ROOT.resolve()), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DDIFFREG_VERSION={version()}",
            f"-DDIFFREG_TORCH_VERSION={torch.__version__}",
            f"-DDIFFREG_TORCH_DIR={Path(torch.__file__).parent}",
        ]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=environment)

    def copy_extensions_to_source(self) -> None:
        """For an editable install: setuptools itself knows of diffreg/_C alone."""
        super().copy_extensions_to_source()
        for library in (Path(self.build_lib) / "diffreg").glob("_cpu_*.so"):
            self.copy_file(str(library), str(ROOT / "diffreg" / library.name))


setup(
    version=version(),
    ext_modules=[Extension("diffreg._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
