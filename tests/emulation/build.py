"""Builds the CUDA kernels for the CPU: the unchanged .cu files and drivers, g++ and the shim.

One library a flavour: "plain" counts traffic, "address" runs under ASan and UBSan, "race" under
TSan. Objects are kept by the hash of what they are made of, so a second build costs nothing; a
process that finds another one building waits for it.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIM = Path(__file__).parent / "shim"
CACHE = ROOT / "build" / "emulation"
COMPILER = os.environ.get("CXX", "g++")

SANITIZE = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "race": ["-fsanitize=thread"],
}
DEFINE = {"plain": [], "address": ["-DDIFFREG_ASAN"], "race": ["-DDIFFREG_TSAN"]}
RUNTIME = {"plain": [], "address": ["libasan.so", "libubsan.so"], "race": ["libtsan.so"]}


def torch_folder(name: str) -> str:
    return str(Path(importlib.util.find_spec("torch").origin).parent / name)


def flags(flavour: str) -> list[str]:
    return [
        *("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
        *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
        *("-DDIFFREG_EMULATION", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
        *("-I", str(SHIM), "-isystem", torch_folder("include")),
        *DEFINE[flavour],
    ]


def sources(csrc: Path, operators: tuple[str, ...]) -> list[Path]:
    """The kernels and drivers of the named operators and of what they call, of all where none is
    named."""
    found = sorted(csrc.glob("*/*.cu")) + sorted(csrc.glob("*/*_cuda.cpp"))
    folders = {csrc / name for name in operators}
    while more := {f for p in found if p.parent in folders for f in used(p, csrc)} - folders:
        folders |= more
    return [p for p in found if not operators or p.parent in folders]


def headers_of(source: Path, csrc: Path) -> list[Path]:
    """Of the source's own folder and of those that it or its headers include from."""
    folders = {source.parent, csrc / "common", SHIM, *used(source, csrc)}
    return sorted(p for folder in folders for p in folder.glob("*.h"))


def used(source: Path, csrc: Path) -> set[Path]:
    """The folders that a source or its headers include from."""
    found = set()
    for path in [source, *source.parent.glob("*.h")]:
        named = re.findall(r'^#include "\.\./(\w+)/', path.read_text(), re.MULTILINE)
        found |= {csrc / name for name in named}
    return found


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process builds in a folder at a time: two would compile the same objects twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_one(source: Path, csrc: Path, flavour: str) -> Path:
    """The object of one source, out of the cache where nothing that it is made of has changed."""
    sanitize = [] if source.parent == SHIM and flavour == "race" else SANITIZE[flavour]
    # Drivers hold no kernel: what they call is what is watched.
    if source.suffix == ".cpp" and source.parent != SHIM:
        sanitize = []
    arguments = [*flags(flavour), *sanitize]
    digest = hashlib.sha256(" ".join([COMPILER, *arguments]).encode())
    for path in [source, *headers_of(source, csrc)]:
        digest.update(path.read_bytes())
    target = CACHE / f"{source.stem}-{digest.hexdigest()[:16]}.o"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    command = [COMPILER, *arguments, "-x", "c++", "-c", str(source), "-o", str(unfinished)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{source.name} does not compile ({flavour}):\n{run.stderr[-4000:]}")
    unfinished.rename(target)
    return target


def build(flavour: str, csrc: Path = ROOT / "csrc", operators: tuple[str, ...] = ()) -> Path:
    """Builds one flavour of the emulated kernels and returns the library."""
    every = [*sources(csrc, operators), SHIM / "emulation.cpp"]
    with alone(CACHE):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: compile_one(source, csrc, flavour), every))
        digest = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
        library = CACHE / f"libdiffreg_{flavour}-{digest}.so"
        if not library.exists():
            link(flavour, objects, library)
    return library


def link(flavour: str, objects: list[Path], library: Path) -> None:
    unfinished = library.with_suffix(f".{os.getpid()}")
    torch = ["-L", torch_folder("lib"), "-ltorch_cpu", "-ltorch", "-lc10"]
    # A library that does not load would pass for one whose kernels are wrong.
    whole = ["-shared", "-Wl,--no-undefined"]
    command = [COMPILER, *whole, *SANITIZE[flavour], *map(str, objects), *torch]
    subprocess.run([*command, "-o", str(unfinished)], check=True)
    unfinished.rename(library)


def environment(flavour: str) -> dict[str, str]:
    """What a Python process needs to load a library of that flavour."""
    paths = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in RUNTIME[flavour]
    ]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(paths),
        "OMP_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0",
    }
