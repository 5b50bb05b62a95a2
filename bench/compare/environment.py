"""The other tools, in an environment of their own: they ask for older packages than diffreg's."""

import subprocess
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", CONSTRAINTS)
# package -> what pip is asked for. fireants names versions that nothing else here can live with.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "picsl_greedy": (("picsl_greedy",),),
    "SimpleITK": (("SimpleITK",),),
    "antspyx": (("antspyx",),),
    "dipy": (("dipy",),),
    "itk-elastix": (("itk-elastix",),),
    "convexAdam": (("torch", "convexAdam"),),
    "fireants": (
        ("torch", "SimpleITK", "nibabel", "hydra-core", "scikit-image", "matplotlib", "tqdm"),
        ("--no-deps", "fireants"),
    ),
}


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def installed(folder: Path) -> set[str]:
    """Which of NEEDED are there."""
    script = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: m.version(name); print(name)\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    if not python_of(folder).exists():
        return set()
    command = [python_of(folder), "-c", script, *NEEDED]
    return set(subprocess.run(command, capture_output=True, text=True).stdout.split())


def prepare(folder: Path) -> dict[str, str]:
    """Install what is missing, tool by tool.

    Returns:
        tool -> why it is not there, in a line.
    """
    if not python_of(folder).exists():
        print(f"{folder}: an environment for the other tools", flush=True)
        venv.create(folder, with_pip=True)
    missing = {}
    there = installed(folder)
    for package in (name for name in NEEDED if name not in there):
        print(f"installing {package}: a download of up to 300 MB", flush=True)
        if problem := install(package, python_of(folder)):
            print(f"{package} could not be installed and is left out: {problem}", flush=True)
            missing[package] = problem
    return missing


def install(package: str, python: Path) -> str:
    """What pip says where it fails; "" where it does not."""
    for words in NEEDED[package]:
        command = [str(part) for part in (python, *PIP, *words)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "ERROR" in line]
            return said[-1].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}"
    return ""
