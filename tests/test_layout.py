"""The tree keeps its shape: one name per operator everywhere, imports in one direction."""

import ast
import re
from pathlib import Path

import pytest

import diffreg.ops

ROOT = Path(__file__).parents[1]
OPERATORS = sorted(p.stem for p in (ROOT / "diffreg" / "ops").glob("[a-z]*.py"))

# Which modules of the package each one may import: the layers below it, never those above.
LAYERS = [
    {"ops"},
    {"fields"},
    {"models", "losses"},
    {"data", "metrics", "variational"},
    {"registration", "trainer", "report"},
    {"cohort"},
    {"evaluation"},
    {"demo", "benchmark"},
    {"cli"},
]
# Modules that belong to the room of another: drawings to the report, settings to the trainer.
ROOMS = {
    "figures": "metrics",
    "panels": "metrics",
    "table": "metrics",
    "boxes": "metrics",
    "report_charts": "report",
    "preparation": "registration",
    "prediction": "registration",
    "cohort_report": "cohort",
    "commands": "cli",
    "installation": "ops",
    "manifest_commands": "cli",
    "report_page": "report",
    "config": "metrics",
    "_settings": "metrics",
    "checkpoint": "trainer",
    "continuing": "trainer",
    "training_log": "trainer",
    "ranks": "trainer",
    "validation": "trainer",
    "pretrained": "trainer",
    "demo_measures": "demo",
    "demo_report": "demo",
    "outputs": "registration",
    "heads": "ops",
}
# Headers of the drivers; all others are for kernels too.
TORCH_HEADERS = {
    "check.h",
    "cuda_driver.h",
    "mask.h",
    "not_a_number.h",
    "parallel.h",
}
LOOSE = {"_extras", "_files", "_memory", "_C", "__init__", "__main__", "__version__"}


def level(room: str) -> int:
    room = ROOMS.get(room, room)
    return next(k for k, rooms in enumerate(LAYERS) if room in rooms)


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "diffreg":
                names = [f"diffreg.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("diffreg.") and "." in n}
    return rooms - LOOSE


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_one_name_everywhere(name):
    mirrors = [
        f"csrc/{name}/{name}.h",
        f"csrc/{name}/{name}_cpu.cpp",
        f"csrc/{name}/{name}.cu",
        f"csrc/{name}/{name}_cuda.h",
        f"csrc/{name}/{name}_cuda.cpp",
        f"tests/ops/test_{name}.py",
        f"bench/ops/bench_{name}.py",
    ]
    assert [m for m in mirrors if not (ROOT / m).exists()] == []
    assert {name, f"{name}_reference"} <= set(diffreg.ops.__all__)
    for driver in ("cpu", "cuda"):
        source = (ROOT / "csrc" / name / f"{name}_{driver}.cpp").read_text()
        assert f'impl("{name}",' in source
        assert re.search(rf'impl\(\s*"{name}_backward",', source)


def test_no_kernel_folder_is_without_its_operator():
    folders = {p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()} - {"common"}
    assert folders == set(OPERATORS)


def test_imports_go_one_way():
    wrong = []
    for path in sorted((ROOT / "diffreg").rglob("*.py")):
        room = path.relative_to(ROOT / "diffreg").parts[0].removesuffix(".py")
        if room in LOOSE:
            continue
        wrong += [
            f"{path.name} imports {other}"
            for other in imported_rooms(path)
            if other != room and level(other) > level(room)
        ]
    assert wrong == []


def test_the_operators_need_torch_and_numpy_only():
    allowed = {"torch", "numpy", "diffreg"}
    for path in (ROOT / "diffreg" / "ops").glob("*.py"):
        found = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        standard = {"collections", "functools", "itertools", "math", "typing"}
        standard |= {"ctypes", "os", "pathlib"}  # what loads the compiled libraries
        assert set(found) <= allowed | standard, path.name


def test_kernels_of_an_operator_share_no_torch_header():
    for path in (ROOT / "csrc").glob("*/*.h"):
        if path.name in TORCH_HEADERS:
            continue
        assert "torch/" not in path.read_text(), path.name


def test_kernels_share_no_torch_header():
    for path in (ROOT / "csrc").glob("*/*.cu"):
        assert "torch/" not in path.read_text(), path.name


def test_there_is_no_drawer_for_everything():
    assert [p for p in ROOT.glob("*/**/util*.py") if ".venv" not in p.parts] == []
