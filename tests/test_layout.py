"""The tree keeps its shape: one name per operator everywhere, imports in one direction."""

import ast
import re
import sys
from pathlib import Path

import pytest

import diffreg.ops

ROOT = Path(__file__).parents[1]
OPERATORS = sorted(p.stem for p in (ROOT / "diffreg" / "ops").glob("[a-z]*.py"))

# The rooms, floor by floor: a module imports from its own room and from the floors below.
FLOORS = [
    {"__init__"},
    {"system"},
    {"ops"},
    {"fields"},
    {"losses", "models", "metrics", "data"},
    {"transforms", "affine"},
    {"report"},
    {"registration", "training"},
    {"evaluation", "benchmark", "demo"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Headers of the drivers; all others are for kernels too.
TORCH_HEADERS = {
    "check.h",
    "text.h",
    "grid.h",
    "cuda_driver.h",
    "mask.h",
    "not_a_number.h",
    "parallel.h",
}
PACKAGE = ROOT / "diffreg"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room_of(module: str) -> str:
    """The folder, or the file, of the package that a module is in."""
    return [*module.split("."), "__init__"][1]


def imported(module: str) -> set[str]:
    """The modules of the package that a module names in any import, at its top or within."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "diffreg"}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_one_name_everywhere(name):
    mirrors = [
        f"csrc/{name}/{name}.h",
        f"csrc/{name}/{name}_cpu.cpp",
        f"tests/ops/test_{name}.py",
    ]
    mirrors += [f"csrc/{name}/{name}{end}" for end in (".cu", "_cuda.h", "_cuda.cpp")]
    assert [m for m in mirrors if not (ROOT / m).exists()] == []
    assert {name, f"{name}_reference"} <= set(diffreg.ops.__all__)
    for driver in ("cpu", "cuda"):
        source = (ROOT / "csrc" / name / f"{name}_{driver}.cpp").read_text()
        assert f'impl("{name}",' in source
        assert re.search(rf'impl\(\s*"{name}_backward",', source)


def test_no_kernel_folder_is_without_its_operator():
    folders = {p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()} - {"common"}
    assert folders == set(OPERATORS)


def test_every_room_stands_on_a_floor():
    assert {room_of(module) for module in MODULES} <= set(FLOOR)


def test_imports_go_down_and_never_to_a_room_of_the_same_floor():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imported(module)
        if room_of(other) != room_of(module) and FLOOR[room_of(other)] >= FLOOR[room_of(module)]
    ]
    assert wrong == []


def test_no_module_takes_a_name_that_the_package_itself_hands_on():
    """Users may: `from diffreg import register`. Within, a name is had from its own room."""
    wrong = [
        f"{module}: from diffreg import {alias.name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "diffreg"
        for alias in node.names
        if f"diffreg.{alias.name}" not in MODULES and alias.name != "__version__"
    ]
    assert wrong == []


def test_no_imports_go_in_a_circle():
    """A package's __init__ hands on what its modules have, so it may be at the end of no path."""
    graph = {module: {o for o in imported(module) if o in MODULES} for module in MODULES}
    while True:
        free = {module for module, others in graph.items() if not others}
        if not free:
            break
        graph = {m: others - free for m, others in graph.items() if m not in free}
    assert graph == {}


def test_the_operators_need_torch_and_numpy_only():
    allowed = {"torch", "numpy", "diffreg"}
    for path in (ROOT / "diffreg" / "ops").glob("*.py"):
        found = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert set(found) <= allowed | sys.stdlib_module_names, path.name


def test_kernels_of_an_operator_share_no_torch_header():
    for path in (ROOT / "csrc").glob("*/*.h"):
        if path.name in TORCH_HEADERS:
            continue
        assert "torch/" not in path.read_text(), path.name


def test_kernels_share_no_torch_header():
    for path in (ROOT / "csrc").glob("*/*.cu"):
        assert "torch/" not in path.read_text(), path.name


def test_there_is_no_drawer_for_everything():
    found = (p.relative_to(ROOT) for p in ROOT.glob("*/**/util*.py"))
    assert [p for p in found if not p.parts[0].startswith(".venv")] == []


def test_a_script_reads_its_words():
    """One that does not would run, and write over what it writes, where it is asked for --help."""
    scripts = [p for room in ("bench", "docs", "paper") for p in (ROOT / room).rglob("*.py")]
    named = [p for p in scripts if f"python {p.relative_to(ROOT)}" in p.read_text()]
    reads = re.compile(r"ArgumentParser\(|sys\.argv|Study\(")
    assert len(named) > 20
    assert [p.name for p in named if not reads.search(p.read_text())] == []
