"""Where it was measured: card, driver, versions, commit."""

import shutil
import subprocess
from typing import Any

import torch
from shapes import device

from diffreg.benchmark.run import machine


def driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem"
    ran = subprocess.run([tool, asked, "--format=csv,noheader"], capture_output=True, text=True)
    return ran.stdout.strip() or None


def here() -> dict[str, Any]:
    row = machine(device())
    if device() == "cuda":
        card = torch.cuda.get_device_properties(0)
        row |= {"multiprocessors": card.multi_processor_count, "driver and clocks": driver()}
    return row
