"""What is too long for `make test`, run by hand, and what came of it: tests/long.md.

    python tests/long.py [PART ...]

Without a name every part is run. A part that is run again replaces its own row alone, so each row
says of which commit it is; uncommitted changes are said too.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "tests" / "long.md"
HEAD = """# What `make test-long` found

By hand, on the machine that each line names. A row is written when its part has been run.

| part | what it is | result | CPU minutes | commit, day, machine |
|---|---|---|---|---|
"""
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
# Part: what it is, what Python runs, and the settings that make it long.
PARTS = {
    "marked": ("tests marked long", (*PYTEST, "-m", "long"), {}),
    "operators": (
        "operators against references, 100,800 drawn cases",
        (*PYTEST, "tests/test_fuzz_operators.py"),
        {"DIFFREG_FUZZ_CASES": "12600"},
    ),
    "variants": (
        "operators, 1,000,000 drawn cases over the CPU variants: references, bits",
        ("tests/variants.py", "--cases", "1000000"),
        {},
    ),
    "plain": (
        "operators in plain PyTorch, 1,000,000 drawn cases: references",
        ("tests/variants.py", "--cases", "1000000", "--only", "none"),
        {},
    ),
    "fuzzer": (
        "the CPU operators under libFuzzer, AddressSanitizer and UBSan for an hour",
        ("tests/fuzzer/run.py", "--minutes", "60"),
        {},
    ),
    "readers": (
        "readers on 200,000 damaged files",
        (*PYTEST, "tests/test_fuzz_readers.py"),
        {"DIFFREG_FUZZ": "200000"},
    ),
    "kills-train": (
        "200 kills at random moments of training",
        ("tests/kills.py", "train"),
        {},
    ),
    "kills-cohort": (
        "200 kills at random moments of a cohort",
        ("tests/kills.py", "cohort"),
        {},
    ),
    "memory": ("memory's slope over an hour of training", ("tests/slope.py",), {}),
    "mutants": (
        "every barrier, fence and bound check taken out in turn",
        ("tests/emulation/mutate.py",),
        {},
    ),
    "monai": ("MONAI's loop beside ours, 20 steps", ("examples/monai_loop.py",), {}),
    "voxelmorph": ("VoxelMorph's loop beside ours, 20 steps", ("examples/voxelmorph_loop.py",), {}),
    "studies": ("every study of the paper, small", ("paper/everything.py", "--quick"), {}),
    "bench": ("the operators beside eager forms", ("-m", "diffreg", "bench", "--quick"), {}),
}


def said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def where() -> str:
    """Commit, day and machine."""
    commit = said(["git", "rev-parse", "--short", "HEAD"]) or "no git"
    changed = (
        " and changes" if said(["git", "status", "--porcelain", "--untracked-files=no"]) else ""
    )
    processor = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    cores = f"{os.cpu_count()} cores, {processor[1] if processor else platform.machine()}"
    return f"{commit}{changed}, {time.strftime('%Y-%m-%d')}, {cores}"


def cpu_seconds() -> float:
    return sum(os.times()[2:4])


def run(name: str) -> tuple[str, bool]:
    """The part's row of the page, and whether it passed; what it prints is passed on."""
    what, arguments, settings = PARTS[name]
    print(f"{name}: {what}", flush=True)
    before, last = cpu_seconds(), ""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | settings,
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    passed = process.wait() == 0
    # These end with whatever they print, all others with their counts.
    counted = name not in ("monai", "voxelmorph", "studies", "bench")
    result = last.strip("= ") if counted else ""
    result = " ".join(filter(None, ["passed" if passed else "**FAILED**", result]))
    minutes = (cpu_seconds() - before) / 60
    return f"| {name} | {what} | {result} | {minutes:.1f} | {where()} |", passed


def rows() -> dict[str, str]:
    """What the page has already: part and row."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    found = {line.split()[1]: line for line in lines if line.startswith("| ")}
    return {name: found[name] for name in PARTS if name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=[[], *PARTS], help="all where none is named")
    wrong = []
    for name in parser.parse_args().part or PARTS:
        row, passed = run(name)
        found = rows() | {name: row}
        PAGE.write_text(HEAD + "".join(found[n] + "\n" for n in PARTS if n in found))
        wrong += [] if passed else [name]
    if wrong:
        raise SystemExit(f"failed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
