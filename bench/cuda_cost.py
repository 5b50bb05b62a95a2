"""What the CUDA kernels cost, as far as it can be told without a GPU; nothing here is a time.

Global memory traffic is counted while the kernels run emulated on the CPU; registers, spills and
shared memory are read from the compiled library (cuda_code.py); occupancy follows from both.
--write writes the tables of docs/cuda.md and bench/results/cuda_resources.tsv, and all there is to
build/cuda_cost.json, which git ignores; --check fails where a gate does not hold.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from cuda_code import MULTIPROCESSOR, loops, resources, spilled, tool, write_resources
from emulation import build
from emulation.emulated import Emulation

from diffreg.ops import _core

ROOT = Path(__file__).parents[1]
SIZE = (512, 512)
SECTOR = 32
GATE = 1.25
GATED = {
    "warp",
    "warp_backward",
    "deformation_energy",
    "deformation_energy_backward",
    "parallel_level_sets",
    "parallel_level_sets_backward",
}


def image(seed: int) -> torch.Tensor:
    y, x = torch.meshgrid(*(torch.arange(n) / 40 for n in SIZE), indexing="ij")
    return (0.5 + 0.3 * torch.sin(2 * y + seed) * torch.cos(x - seed))[None, None]


def calls(dtype: torch.dtype) -> list[tuple[str, tuple[Any, ...], float]]:
    """Operator, arguments, fewest bytes moved a voxel (halos in cache, one channel)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    stored, kept = dtype.itemsize, wide.itemsize  # determinants are not rounded
    moving, fixed = image(0).to(dtype), image(1).to(dtype)
    u = torch.cat([4 * image(2) - 2, 4 * image(3) - 2], dim=1).to(dtype)
    one, scale = torch.ones(1, dtype=wide), torch.full((1,), 0.05, dtype=wide)
    moments = torch.tensor([[0.5, 0.5, 1.0, 1.0, 0.5]], dtype=torch.float64)
    information = (moving, fixed, 32, None, None)
    pair = moving.to(wide), fixed.to(wide)
    _, *saved = torch.ops.diffreg.mutual_information(*pair, *information[2:])
    linear = ("linear", "border")
    energy = (u, [1.0, 1.0], "hyperelastic", 0.2)
    pls = (moving, fixed, scale, scale, "pls", None)
    cells = torch.ones(1, SIZE[0] - 1, SIZE[1] - 1, dtype=wide)
    to_warped = (True, False)
    mixture, weights = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0], [60.0, 1.0, 30.0, 3.0]
    objective = (moving, fixed, u, scale, scale, None, mixture, weights, "border", *energy[1:])
    total = (one, None, None, None, None)
    return [
        ("warp", (moving, u, *linear), 4 * stored),
        ("warp_backward", (fixed, moving, u, *linear, False, True, False), 6 * stored),
        ("deformation_energy", energy, 2 * stored),
        ("deformation_energy_backward", (one, one, one, *energy), 4 * stored),
        ("jacobian_determinant", (u, "min"), 2 * stored + kept),
        ("jacobian_determinant_backward", (cells, u, "min"), 4 * stored + kept),
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
        ("registration_objective", (*objective, False, False), 4 * stored),
        ("registration_objective_backward", (*total, *objective), 6 * stored),
    ]


def traffic(emulation: Emulation, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Sectors that each block touches, once a block: what leaves its cache at the most."""
    rows = []
    voxels = SIZE[0] * SIZE[1]
    for name, arguments, fewest in calls(dtype):
        emulation.set(counting=True)
        getattr(emulation.ops, name)(*arguments)
        counted = emulation.traffic()
        counted.pop("memset", None)
        sectors = sum(k["load_sectors"] + k["store_sectors"] for k in counted.values())
        rows.append(
            {
                "operator": name,
                "dtype": str(dtype).removeprefix("torch."),
                "kernels": {k.split("/")[1]: v["launches"] for k, v in counted.items()},
                "bytes_a_voxel": sectors * SECTOR / voxels,
                "fewest_bytes_a_voxel": fewest,
                "ratio": sectors * SECTOR / voxels / fewest,
            }
        )
    return rows


def broken_gates(rows: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> list[str]:
    wrong = [
        f"{r['operator']} ({r['dtype']}): {r['ratio']:.2f} x the fewest bytes, {GATE} allowed"
        for r in rows
        if r["operator"] in GATED and r["ratio"] > GATE
    ]
    wrong += [
        f"{r['kernel']} (sm_{r['architecture']}): {spilled(r)} bytes of local memory"
        for r in compiled
        if spilled(r) > 0
    ]
    return wrong


def table(rows: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> str:
    lines = [
        "| operator | kernels | fewest | float32 | float64 | float16 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["dtype"] != "float32":
            continue
        ratios = [
            next(
                f"{r['bytes_a_voxel']:.1f} ({r['ratio']:.2f} x)"
                for r in rows
                if r["operator"] == row["operator"] and r["dtype"] == dtype
            )
            for dtype in ("float32", "float64", "float16")
        ]
        kernels = sum(row["kernels"].values())
        lines.append(
            f"| {row['operator']} | {kernels} | {row['fewest_bytes_a_voxel']} | "
            + " | ".join(ratios)
            + " |"
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
        from diffreg import _C

        compiled = resources(Path(_C.__file__), cuobjdump)
        if tool("nvdisasm") is None:
            print("loops and bytes in flight: skipped, there is no nvdisasm")
        else:
            loops(Path(_C.__file__), cuobjdump, compiled)
    return compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a gate does not hold")
    parser.add_argument("--write", action="store_true", help="write the tables and the JSON")
    options = parser.parse_args()
    compiled = read_core()
    if options.write and not compiled:
        raise SystemExit("--write would empty the tables: it needs kernels and cuobjdump")
    emulation = Emulation(build.build("plain"))
    dtypes = (torch.float32, torch.float64, torch.float16)
    rows = [row for dtype in dtypes for row in traffic(emulation, dtype)]
    print(table(rows, compiled))
    if options.write:
        write_docs(table(rows, compiled))
        write_resources(compiled, ROOT / "bench" / "results" / "cuda_resources.tsv")
        result = {"core": _core.build_info(), "traffic": rows, "resources": compiled}
        target = ROOT / "build" / "cuda_cost.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
    wrong = broken_gates(rows, compiled)
    for gate in wrong:
        print("gate:", gate)
    if options.check and wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
