"""What the CUDA kernels cost, as far as it can be told without a GPU; nothing here is a time.

Global memory traffic is counted while the kernels run emulated on the CPU; registers, spills,
shared memory and machine instructions are read from the compiled library (cuda_code.py); occupancy
follows. --write writes the tables of docs/cuda.md, bench/results/cuda_resources.tsv and
cuda_counts.json (of which bench/gpu/page.py makes predictions), and all there is to
build/cuda_cost.json, which git ignores; --check fails where a gate does not hold, or a kernel is
longer than the table allows.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from cuda_code import (
    MULTIPROCESSOR,
    compiler_of,
    costs,
    grown,
    machine_code,
    read_resources,
    resources,
    short,
    spilled,
    tool,
    write_resources,
)
from emulation import build
from emulation.emulated import Emulation

from diffreg.ops import _core
from diffreg.ops._objective import MEASURES

ROOT = Path(__file__).parents[1]
RESOURCES = ROOT / "bench" / "results" / "cuda_resources.tsv"
COUNTS = ROOT / "bench" / "results" / "cuda_counts.json"
SIZES = ((512, 512), (32, 64, 96))
SECTOR = 32
# Of tiles, by dimensions: makes strips as long as those of 16 x 2048^2 and of 160 x 192 x 224, of
# which the counts make predictions.
ENOUGH = {2: 0, 3: 23}
GATE = 1.3
GATED = {
    "warp",
    "warp_backward",
    "deformation_energy",
    "deformation_energy_backward",
    "parallel_level_sets",
    "parallel_level_sets_backward",
}


def image(size: tuple[int, ...], seed: int) -> torch.Tensor:
    *_, y, x = torch.meshgrid(*(torch.arange(n) / 40 for n in size), indexing="ij")
    return (0.5 + 0.3 * torch.sin(2 * y + seed) * torch.cos(x - seed))[None, None]


def calls(
    dtype: torch.dtype, size: tuple[int, ...] = SIZES[0]
) -> list[tuple[str, tuple[Any, ...], float]]:
    """Operator and, behind a comma, what of it; arguments; fewest bytes moved a voxel (halos in
    cache, one channel)."""
    dimensions = len(size)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    stored, kept = dtype.itemsize, wide.itemsize  # determinants are not rounded
    moving, fixed = image(size, 0).to(dtype), image(size, 1).to(dtype)
    u = torch.cat([4 * image(size, 2 + k) - 2 for k in range(dimensions)], dim=1).to(dtype)
    one, scale = torch.ones(1, dtype=wide), torch.full((1,), 0.05, dtype=wide)
    moments = torch.tensor([[0.5, 0.5, 1.0, 1.0, 0.5]], dtype=torch.float64)
    information = (moving, fixed, 32, None, None)
    pair = moving.to(wide), fixed.to(wide)
    _, *saved = torch.ops.diffreg.mutual_information(*pair, *information[2:])
    linear = ("linear", "border")
    turn = torch.eye(dimensions, dimensions + 1, dtype=torch.float64)[None]
    turn[0, 0, 1], turn[0, 1, 0], turn[..., -1] = 0.1, -0.1, 1.3
    energy = (u, [1.0] * dimensions, "hyperelastic", 0.2)
    pls = (moving, fixed, scale, scale, "pls", None)
    cells = torch.ones(1, *(n - 1 for n in size), dtype=wide)
    field = dimensions * stored
    to_warped = (True, False)

    def objective(mixture: dict[str, float]) -> tuple[Any, ...]:
        factors = [mixture.get(name, 0.0) for name in MEASURES]
        options = (factors, [60.0, 1.0, 30.0, 3.0], "border", *energy[1:])
        return (moving, fixed, u, scale, scale, None, *options)

    objectives = [
        (
            f"registration_objective, {name}",
            (*objective(mixture), True, False),
            2 * stored + 2 * field,
        )
        for name, mixture in (
            ("pls", {"pls": 1.0}),
            ("ncc", {"ncc": 1.0}),
            ("ncc + .2 lncc", {"ncc": 1.0, "lncc": 0.2}),
        )
    ]
    value = (*objective({"pls": 1.0}), False, False)
    return [
        ("warp", (moving, u, *linear), 2 * stored + field),
        ("warp_backward", (fixed, moving, u, *linear, False, True, False), 2 * stored + 2 * field),
        ("affine_warp", (moving, turn, None, list(size), *linear), 2 * stored),
        ("affine_warp, displaced", (moving, turn, u, [], *linear), 2 * stored + field),
        (
            "affine_warp_backward, to the map",
            (fixed, moving, turn, None, list(size), *linear, True, False),
            2 * stored,
        ),
        (
            "affine_warp_backward, to both",
            (fixed, moving, turn, u, [], *linear, True, True),
            2 * stored + 2 * field,
        ),
        ("deformation_energy", energy, field),
        ("deformation_energy_backward", (one, one, one, *energy), 2 * field),
        ("jacobian_determinant", (u, "min"), field + kept),
        ("jacobian_determinant_backward", (cells, u, "min"), 2 * field + kept),
        ("parallel_level_sets", pls, 2 * stored),
        ("parallel_level_sets_backward", (one, *pls, *to_warped), 3 * stored),
        ("gradient_scale", (moving, 1.0, None), 1 * stored),
        ("gradient_scale_backward", (one, moving, 1.0, None), 2 * stored),
        ("correlation", (moving, fixed, None), 2 * stored),
        ("correlation_backward", (one, moments, moving, fixed, None, *to_warped), 3 * stored),
        ("mutual_information", information, 2 * stored),
        ("mutual_information_backward", (one, *saved, *information), 3 * stored),
        ("local_correlation", (moving, fixed, 9, None), 2 * stored),
        ("local_correlation_backward", (one, moving, fixed, 9, None, *to_warped), 3 * stored),
        ("registration_objective, pls, value alone", value, 2 * stored + field),
        *objectives,
    ]


def traffic(
    emulation: Emulation, dtype: torch.dtype, size: tuple[int, ...] = SIZES[0]
) -> list[dict[str, Any]]:
    """Sectors that each block touches, once a block: what leaves its cache at the most."""
    rows = []
    voxels = math.prod(size)
    for name, arguments, fewest in calls(dtype, size):
        emulation.set(counting=True, enough_tiles=ENOUGH[len(size)])
        getattr(emulation.ops, name.partition(",")[0])(*arguments)
        counted = emulation.traffic()
        counted.pop("memset", None)
        sectors = sum(k["load_sectors"] + k["store_sectors"] for k in counted.values())
        rows.append(
            {
                "operator": name,
                "dimensions": len(size),
                "dtype": str(dtype).removeprefix("torch."),
                "kernels": {k.split("/")[1]: v["launches"] for k, v in counted.items()},
                "instances": [
                    {
                        "kernel": instance(v["instance"]),
                        "loads_a_voxel": v["loads"] / voxels,
                        "bytes_a_voxel": (v["load_sectors"] + v["store_sectors"]) * SECTOR / voxels,
                    }
                    for v in counted.values()
                ],
                "bytes_a_voxel": sectors * SECTOR / voxels,
                "fewest_bytes_a_voxel": fewest,
                "ratio": sectors * SECTOR / voxels / fewest,
            }
        )
    return rows


def instance(mangled: str) -> str:
    """operator/kernel<arguments> of what the emulation says that it launched."""
    command = ["c++filt", "-t", mangled]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return short(text[text.index("diffreg::") :])


def instructions_a_voxel(
    launched: dict[str, Any], compiled: list[dict[str, Any]], architecture: str = "90"
) -> float | None:
    """Of a thread, by the longest inner loop: those for each byte loaded, times the bytes loaded.

    What the loop chooses between at run time is all counted: rather too many. None where the kernel
    was not compiled or loads nothing in a loop.
    """
    for row in compiled:
        if row["architecture"] == architecture and row["kernel"] == launched["kernel"]:
            if not row.get("inner_loads"):
                return None
            return round(launched["loads_a_voxel"] * row["inner_loop"] / row["inner_loads"], 1)
    return None


def counts(rows: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What predictions are made of, of float32."""
    return [
        {
            "operator": row["operator"],
            "dimensions": row["dimensions"],
            "bytes_a_voxel": round(row["bytes_a_voxel"], 2),
            "fewest_bytes_a_voxel": row["fewest_bytes_a_voxel"],
            "kernels": [
                {
                    "kernel": launched["kernel"],
                    "bytes_a_voxel": round(launched["bytes_a_voxel"], 2),
                    "instructions_a_voxel": instructions_a_voxel(launched, compiled),
                }
                for launched in row["instances"]
            ],
        }
        for row in rows
        if row["dtype"] == "float32"
    ]


def broken_gates(rows: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> list[str]:
    wrong = [
        f"{r['operator']} ({r['dtype']}): {r['ratio']:.2f} x the fewest bytes, {GATE} allowed"
        for r in rows
        if r["operator"] in GATED and r["dimensions"] == 2 and r["ratio"] > GATE
    ]
    wrong += [
        f"{r['kernel']} (sm_{r['architecture']}): {spilled(r)} bytes of local memory"
        for r in compiled
        if spilled(r) > 0
    ]
    return wrong


def longer_than_kept(compiled: list[dict[str, Any]], compiler: str) -> list[str]:
    """Gates of the committed table; says in words what cannot be compared."""
    if not compiled:
        return []
    kept, of_nvcc = read_resources(RESOURCES), compiler_of(RESOURCES)
    if of_nvcc != compiler:
        print(f"instructions: skipped, the table is of nvcc {of_nvcc or '?'}, this is {compiler}")
        kept = {
            kernel: {a: cost.without_code() for a, cost in c.items()} for kernel, c in kept.items()
        }
    wrong = grown(kept, costs(compiled))
    if wrong:
        wrong.append("python bench/cuda_cost.py --write edits bench/results/cuda_resources.tsv")
    return wrong


def table(rows: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> str:
    lines = [
        "| operator | kernels | fewest | float32 | float64 | float16 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["dtype"] != "float32":
            continue
        same = [r for r in rows if all(r[k] == row[k] for k in ("operator", "dimensions"))]
        ratios = [
            next(
                f"{r['bytes_a_voxel']:.1f} ({r['ratio']:.2f} x)"
                for r in same
                if r["dtype"] == dtype
            )
            for dtype in ("float32", "float64", "float16")
        ]
        kernels = sum(row["kernels"].values())
        name = row["operator"] + ", volumes" * (row["dimensions"] == 3)
        lines.append(
            f"| {name} | {kernels} | {row['fewest_bytes_a_voxel']} | " + " | ".join(ratios) + " |"
        )
    if not compiled:
        return "\n".join([*lines, "", "Registers and occupancy: no cuobjdump was at hand."])
    lines += [
        "",
        "| kernel, float32 | registers | shared bytes | occupancy sm_80 | sm_90 | sm_100 "
        "| loop, sm_90 | in flight, sm_90 |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    kernels = sorted({r["kernel"] for r in compiled if "float" in r["kernel"]})
    for kernel in kernels:
        found = {r["architecture"]: r for r in compiled if r["kernel"] == kernel}
        if "80" not in found:
            continue
        shares = [f"{found[a]['occupancy']:.0%}" if a in found else "-" for a in MULTIPROCESSOR]
        hopper = found.get("90", {})
        code = [str(hopper.get(key, "-")) for key in ("loop", "in_flight")]
        columns = [str(found["80"]["REG"]), str(found["80"]["SHARED"]), *shares, *code]
        lines.append(f"| {kernel} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def write_docs(text: str) -> None:
    path = ROOT / "docs" / "cuda.md"
    begin, end = "<!-- cost -->", "<!-- /cost -->"
    head, rest = path.read_text().split(begin)
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def read_core() -> list[dict[str, Any]]:
    """What the kernels of this build need; nothing, and why in words, where it cannot be read."""
    cuobjdump, compiled = tool("cuobjdump"), []
    if _core.build_info()["cuda_architectures"] == "none":
        print("registers, spills and occupancy: skipped, this build has no CUDA kernels")
    elif cuobjdump is None:
        print("registers, spills and occupancy: skipped, there is no cuobjdump")
    else:
        compiled = resources(_core.LIBRARY, cuobjdump)
        if tool("nvdisasm") is None:
            print("instructions and bytes in flight: skipped, there is no nvdisasm")
        else:
            machine_code(_core.LIBRARY, cuobjdump, compiled)
    return compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a gate does not hold")
    parser.add_argument("--write", action="store_true", help="write the tables and the JSON")
    options = parser.parse_args()
    compiled = read_core()
    if options.write and not (compiled and "instructions" in compiled[0]):
        raise SystemExit("--write would empty the tables: it needs kernels, cuobjdump and nvdisasm")
    compiler = _core.build_info()["cuda_runtime"]
    emulation = Emulation(build.build("plain"))
    dtypes = (torch.float32, torch.float64, torch.float16)
    sizes = SIZES if options.write else SIZES[:1]  # the gates are those of images
    rows = [row for size in sizes for dtype in dtypes for row in traffic(emulation, dtype, size)]
    print(table(rows, compiled))
    if options.write:
        write_docs(table(rows, compiled))
        write_resources(compiled, RESOURCES, compiler)
        COUNTS.write_text(json.dumps(counts(rows, compiled), indent=1) + "\n")
        result = {"core": _core.build_info(), "traffic": rows, "resources": compiled}
        target = ROOT / "build" / "cuda_cost.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
    wrong = broken_gates(rows, compiled) + longer_than_kept(compiled, compiler)
    for gate in wrong:
        print("gate:", gate)
    if options.check and wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
