"""Hardware counters, by ncu, of the three operators with the smallest share of x + 1."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rows import LEFT_OUT, put
from shapes import IMAGES, is_dry, shapes

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM %",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "smsp__inst_executed.sum": "warp instructions",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "launch__registers_per_thread": "registers",
}
WORST = 3


def worst(rows: list[dict[str, Any]], shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Of float32 at one shape; whole cases are not among them."""
    found = [
        row
        for row in rows
        if row.get("dtype") == "float32"
        and row.get("shape") == list(shape)
        and "share" in row
        and row["name"] != "forward + backward"
    ]
    return sorted(found, key=lambda row: row["share"])[:WORST]


def target(row: dict[str, Any]) -> list[str]:
    script = Path(__file__).with_name("kernels.py")
    dry = ["--dry-run"] if is_dry() else []
    shape = map(str, row["shape"])
    return [sys.executable, str(script), *dry, "--profile", row["case"], row["name"], *shape]


def counted(said: str) -> list[dict[str, Any]]:
    """Kernel and counters of every launch in ncu's CSV."""
    lines = said[said.find('"ID"') :] if '"ID"' in said else ""
    table = list(csv.DictReader(io.StringIO(lines)))
    found = []
    for launch in table[1:]:  # the first line has the units
        kernel = launch.get("Kernel Name", "")
        figures = {
            short: float(launch[name].replace(",", ""))
            for name, short in METRICS.items()
            if launch.get(name) and launch[name].replace(",", "").replace(".", "").isdigit()
        }
        found.append({"kernel": kernel.split("(")[0][:120], **figures})
    return found


def main() -> None:
    results = json.loads(Path(os.environ["DIFFREG_GPU_RESULTS"]).read_text())
    measured = results["parts"].get("kernels", {}).get("rows", [])
    rows = worst(measured, *shapes(IMAGES))
    if not rows:
        put(name="ncu", left_out="no kernel was measured before")
        sys.exit(LEFT_OUT)
    tool = shutil.which("ncu")
    if is_dry():
        subprocess.run(target(rows[0]), check=True)
    if tool is None or is_dry():
        put(name="ncu", left_out="a dry run" if is_dry() else "it is not on the PATH")
        sys.exit(LEFT_OUT)
    options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    options += ["--profile-from-start", "off", "--metrics", ",".join(METRICS)]
    status = 0
    for row in rows:
        ran = subprocess.run([tool, *options, *target(row)], capture_output=True, text=True)
        launches = counted(ran.stdout)
        for launch in {found["kernel"]: found for found in launches}.values():
            put(name=row["name"], share=row["share"], **launch)
        if not launches:
            lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
            put(name=row["name"], left_out=f"ncu refused: {lines[-1] if lines else ran.returncode}")
            status = LEFT_OUT
    sys.exit(status)


if __name__ == "__main__":
    main()
