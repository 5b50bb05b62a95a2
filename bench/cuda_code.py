"""What the compiled CUDA kernels need: registers, spills, shared memory, and loops of the code.

Read from the library by cuobjdump, the loops by nvdisasm too; neither needs a GPU.
"""

import csv
import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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
            rows.append({"kernel": name, "architecture": architecture, **numbers})
    names = "\n".join(r["kernel"] for r in rows)
    plain = subprocess.run(["c++filt"], input=names, capture_output=True, text=True).stdout
    for row, name in zip(rows, plain.splitlines(), strict=True):
        row["kernel"] = short(name)
        if row["architecture"] in MULTIPROCESSOR:
            row["occupancy"] = occupancy(row["architecture"], row["REG"], row["SHARED"])
    return rows


_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)([^;]*);")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def loops(library: Path, cuobjdump: str, rows: list[dict[str, Any]]) -> None:
    """Adds to the resources of MULTIPROCESSOR's architectures what the machine code shows.

    `loop`: instructions of the longest loop, the one over tiles where there is one. `in_flight`:
    bytes that the resident threads of a multiprocessor have asked global memory for before the
    first of them is used, at the best place of the code (branches between loads not followed).
    """
    disassembler = tool("nvdisasm")
    path = os.pathsep.join([str(Path(disassembler or "").parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    for architecture in MULTIPROCESSOR:
        command = [cuobjdump, "--dump-sass", "--gpu-architecture", f"sm_{architecture}"]
        text = subprocess.run(
            [*command, str(library)], capture_output=True, text=True, env=environment
        ).stdout
        names = subprocess.run(["c++filt"], input=text, capture_output=True, text=True).stdout
        for part in names.split("Function : ")[1:]:
            kernel = short(part.splitlines()[0].strip())
            for row in rows:
                if row["kernel"] == kernel and row["architecture"] == architecture:
                    row["loop"], a_thread = _longest_loop(part), _bytes_asked_for(part)
                    resident = row["occupancy"] * MULTIPROCESSOR[architecture][0] * 32
                    row["in_flight"] = round(resident * a_thread)


def _longest_loop(code: str) -> int:
    """Instructions, of 16 bytes, between a branch backwards and where it goes."""
    longest = 0
    for address, name, operands in _INSTRUCTION.findall(code):
        target = re.search(r"0x([0-9a-f]+)\s*$", operands)
        if name.startswith("BRA") and target:
            longest = max(longest, (int(address, 16) - int(target[1], 16)) // 16 + 1)
    return longest


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
            waiting[first.strip()] = next((_BYTES[w] for w in name.split(".") if w in _BYTES), 4)
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


def write_resources(rows: list[dict[str, Any]], path: Path) -> None:
    """A line a kernel: registers, spilled bytes and shared bytes of every architecture."""
    architectures = sorted({r["architecture"] for r in rows}, key=int)
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        text = f"{row['REG']}/{spilled(row)}/{row['SHARED']}"
        cells.setdefault(row["kernel"], {})[row["architecture"]] = text
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["kernel", *(f"sm_{a}" for a in architectures)])
        for kernel in sorted(cells):
            writer.writerow([kernel, *(cells[kernel].get(a, "") for a in architectures)])


def read_resources(path: Path) -> dict[str, dict[str, tuple[int, int, int]]]:
    """{kernel: {architecture: (registers, spilled bytes, shared bytes)}} of that table."""
    with path.open(newline="") as file:
        head, *lines = csv.reader(file, delimiter="\t")
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    for kernel, *cells in lines:
        numbers = {}
        for architecture, cell in zip(head[1:], cells, strict=True):
            if cell:
                registers, spills, shared = map(int, cell.split("/"))
                numbers[architecture.removeprefix("sm_")] = (registers, spills, shared)
        found[kernel] = numbers
    return found
