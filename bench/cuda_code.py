"""What the compiled CUDA kernels need: registers, spills, shared memory, and machine instructions.

Read from the library by cuobjdump, the instructions by nvdisasm too; neither needs a GPU.
"""

import csv
import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

THREADS = 256
# Warps, 32-bit registers and bytes of shared memory of a multiprocessor.
MULTIPROCESSOR = {
    "80": (64, 65536, 164 * 1024),
    "90": (64, 65536, 228 * 1024),
    "100": (64, 65536, 228 * 1024),
}


def tool(name: str) -> str | None:
    """cuobjdump or nvdisasm, from the PATH or out of its wheel."""
    if found := shutil.which(name):
        return found
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == name:
            path = Path(str(file.locate()))
            path.chmod(path.stat().st_mode | 0o111)
            return str(path)
    return None


def occupancy(architecture: str, registers: int, shared: int) -> float:
    """Resident warps of those that a multiprocessor can hold, for blocks of 256 threads."""
    warps, all_registers, all_shared = MULTIPROCESSOR[architecture]
    a_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        warps * 32 // THREADS,
        all_registers // (a_warp * THREADS // 32),
        all_shared // (shared + 1024),  # the system keeps 1 KiB a block
    )
    return blocks * THREADS / 32 / warps


def resources(library: Path, cuobjdump: str) -> list[dict[str, Any]]:
    """Registers, local and shared memory of every kernel and architecture in the library."""
    text = subprocess.run(
        [cuobjdump, "--dump-resource-usage", str(library)], capture_output=True, text=True
    ).stdout
    rows, architecture = [], ""
    for line in text.splitlines():
        if found := re.match(r"arch = sm_(\d+)", line.strip()):
            architecture = found[1]
        elif found := re.match(r"Function (\S+):", line.strip()):
            name = found[1]
        elif "REG:" in line:
            numbers = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}
            rows.append({"function": name, "architecture": architecture, **numbers})
    names = "\n".join(r["function"] for r in rows)
    plain = subprocess.run(["c++filt"], input=names, capture_output=True, text=True).stdout
    for row, name in zip(rows, plain.splitlines(), strict=True):
        row["kernel"] = short(name)
        if row["architecture"] in MULTIPROCESSOR:
            row["occupancy"] = occupancy(row["architecture"], row["REG"], row["SHARED"])
    return rows


_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)([^;]*);")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def machine_code(library: Path, cuobjdump: str, rows: list[dict[str, Any]]) -> None:
    """Adds to the resources what the machine code shows.

    `instructions`: of the whole kernel. `loop`: of its longest loop, the one over tiles where there
    is one. `inner_loop`: of the longest that has none in it; `inner_loads`: bytes that a thread
    loads there from global memory. `in_flight`, of MULTIPROCESSOR's architectures: bytes that the
    resident threads of a multiprocessor have asked global memory for before the first of them is
    used, at the best place of the code (branches between loads not followed).
    """
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:  # some are compiled in several files
        by_name.setdefault((row["architecture"], row["function"]), []).append(row)
    for architecture in sorted({row["architecture"] for row in rows}, key=int):
        for part in _disassembled(library, cuobjdump, architecture).split("Function : ")[1:]:
            for row in by_name.get((architecture, part.split(maxsplit=1)[0]), ()):
                row |= _measured(part)
                if architecture in MULTIPROCESSOR:
                    resident = row["occupancy"] * MULTIPROCESSOR[architecture][0] * 32
                    row["in_flight"] = round(resident * _bytes_asked_for(part))


def _disassembled(library: Path, cuobjdump: str, architecture: str) -> str:
    disassembler = tool("nvdisasm")
    path = os.pathsep.join([str(Path(disassembler or "").parent), os.environ["PATH"]])
    command = [cuobjdump, "--dump-sass", "--gpu-architecture", f"sm_{architecture}", str(library)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PATH": path}
    ).stdout


def _measured(code: str) -> dict[str, int]:
    """Instructions, without what fills up, and those of the loops."""
    found = [
        (int(address, 16), name, operands) for address, name, operands in _INSTRUCTION.findall(code)
    ]
    loops = []
    for address, name, operands in found:
        target = re.search(r"0x([0-9a-f]+)\s*$", operands)
        # The last branch leads to itself.
        if name.startswith("BRA") and target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    innermost = [
        loop
        for loop in loops
        if not any(
            loop[0] <= begin and end <= loop[1] and (begin, end) != loop for begin, end in loops
        )
    ]

    def longest(some: list[tuple[int, int]]) -> list[str]:
        begin, end = max(some, key=lambda loop: loop[1] - loop[0], default=(0, -1))
        return [name for address, name, _ in found if begin <= address <= end]

    inner = longest(innermost)
    return {
        "instructions": sum(name != "NOP" for _, name, _ in found),
        "loop": len(longest(loops)),
        "inner_loop": len(inner),
        "inner_loads": sum(_width(name) for name in inner if name.startswith("LDG")),
    }


def _width(name: str) -> int:
    """Bytes that a load or store of that name moves."""
    return next((_BYTES[word] for word in name.split(".") if word in _BYTES), 4)


def _bytes_asked_for(code: str) -> int:
    """The most that one thread's loads ask for before an instruction uses one of their results."""
    most, waiting = 0, {}
    for _, name, operands in _INSTRUCTION.findall(code):
        first, _, rest = operands.partition(",")
        load = name.startswith("LDG")
        used = set(re.findall(r"\bR\d+\b", rest if load else operands))
        if used & waiting.keys() or name.startswith("BAR"):
            waiting = {}
        if load:
            waiting[first.strip()] = _width(name)
            most = max(most, sum(waiting.values()))
    return most


def short(name: str) -> str:
    """operator/kernel<arguments> of a demangled name."""
    name = re.sub(r"\(anonymous namespace\)::|diffreg::", "", name.removeprefix("void "))
    depth = 0
    for k, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and k > 0:
            name = name[:k]
            break
    return name.replace("::", "/", 1)


def spilled(row: dict[str, Any]) -> int:
    """Bytes of local memory of a thread: registers that did not fit, and arrays that are none."""
    return row["LOCAL"] + row["STACK"]


class Cost(NamedTuple):
    """What a kernel needs on an architecture; of older tables the instructions are not known."""

    registers: int
    spilled: int
    shared: int
    instructions: int | None = None
    loop: int | None = None

    def without_code(self) -> "Cost":
        return self._replace(instructions=None, loop=None)


Costs = dict[str, dict[str, Cost]]  # of a kernel, on an architecture
GROWTH = 1.05  # of instructions, without an edit of the table


def costs(rows: list[dict[str, Any]]) -> Costs:
    found: Costs = {}
    for row in rows:
        code = row.get("instructions"), row.get("loop")
        cost = Cost(row["REG"], spilled(row), row["SHARED"], *code)
        found.setdefault(row["kernel"], {})[row["architecture"]] = cost
    return found


def write_resources(rows: list[dict[str, Any]], path: Path, compiler: str) -> None:
    """A line a kernel: registers/spilled bytes/shared bytes/instructions/loop of each architecture.

    Args:
        compiler: release of nvcc, on which the numbers depend.
    """
    architectures = sorted({r["architecture"] for r in rows}, key=int)
    found = costs(rows)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([f"kernel, nvcc {compiler}", *(f"sm_{a}" for a in architectures)])
        for kernel in sorted(found):
            cells = (found[kernel].get(a, ()) for a in architectures)
            writer.writerow([kernel, *("/".join(map(str, cell)) for cell in cells)])


def read_resources(path: Path) -> Costs:
    """That table."""
    with path.open(newline="") as file:
        head, *lines = csv.reader(file, delimiter="\t")
    architectures = [name.removeprefix("sm_") for name in head[1:]]
    return {
        kernel: {
            architecture: Cost(*map(int, cell.split("/")))
            for architecture, cell in zip(architectures, cells, strict=True)
            if cell
        }
        for kernel, *cells in lines
    }


def compiler_of(path: Path) -> str | None:
    """The nvcc of the table; None: an older table, without instructions."""
    _, found, compiler = path.read_text().split("\t", 1)[0].partition("nvcc ")
    return compiler if found else None


def grown(kept: Costs, now: Costs) -> list[str]:
    """Kernels that the table does not have, or that have become longer than it allows; a line each.

    Architectures that the table has none of are not compared.
    """
    known = {architecture for cells in kept.values() for architecture in cells}
    wrong = []
    for kernel, cells in sorted(now.items()):
        for architecture in sorted(known & cells.keys(), key=int):
            where, cost = f"{kernel} (sm_{architecture})", cells[architecture]
            before = kept.get(kernel, {}).get(architecture)
            if before is None:
                wrong.append(f"{where}: is not in the table")
                continue
            for what in ("instructions", "loop"):
                old, new = getattr(before, what), getattr(cost, what)
                if old and new and new > GROWTH * old:
                    name = "instructions" if what == "instructions" else "instructions of its loop"
                    more = f"{new / old - 1:.1%} more, {GROWTH - 1:.0%} allowed"
                    wrong.append(f"{where}: {old} -> {new} {name}, {more}")
    return wrong
