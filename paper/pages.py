"""What a study leaves: rows (JSON), tables (Markdown and CSV) and figures, in paper/results.

Files appear whole or not at all; the page paper/results/README.md is put together from them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from images import ROOT
from training import Place

from diffreg.benchmark.run import machine
from diffreg.system.atomic import replacing

Row = dict[str, Any]
PAGES = ROOT / "paper" / "results"
KEPT = ROOT / "build" / "paper"


class Study:
    """The options of a study's command line, and where its results go.

    Args:
        name: of the study, and of its files.
        about: the first line of its help.
        needs_data: whether the full form reads images from --data.
        stages: of its training, which have to be run in this order.
    """

    def __init__(
        self, name: str, about: str, needs_data: bool = True, stages: Sequence[str] = ()
    ) -> None:
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--data", type=Path, help="the folder of docs/data.md")
        parser.add_argument(
            "--quick", action="store_true", help="small, on shipped slices and generated shapes"
        )
        parser.add_argument("--device", default="cpu", help="where networks are trained (cpu)")
        parser.add_argument("--out", type=Path, help="where the results go (paper/results)")
        parser.add_argument(
            "--part", default="", metavar="K/N", help="only train and measure every N-th network"
        )
        if stages:
            parser.add_argument("--only", choices=stages, default="", help="one stage of it")
        self.options = parser.parse_args()
        self.name = name
        self.stage = vars(self.options).get("only", "")
        self.quick = self.options.quick
        if needs_data and not self.quick and self.options.data is None:
            parser.error("--data DIR is needed (docs/data.md), or --quick")
        self.data = self.options.data
        self.device = torch.device(self.options.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda needs a GPU, there is none")
        self.out = self.options.out or (KEPT / "quick" if self.quick else PAGES)
        # A quick study starts anew: what it is there to show is that the code runs.
        runs = self.out / "runs" / name if self.quick else KEPT / "runs"
        if self.quick:
            shutil.rmtree(runs, ignore_errors=True)
        self.place = Place(self.device, runs)
        self.partial = bool(self.options.part)
        part, _, parts = (self.options.part or "0/1").partition("/")
        self.part, self.parts = int(part), int(parts)
        if not 0 <= self.part < self.parts:
            parser.error(f"--part must be K/N with 0 <= K < N, got {self.options.part}")
        if self.partial and stages and not self.stage:
            parser.error(f"--part needs --only {', '.join(stages)}")
        # Parts run side by side, and share the cores; the tables' times are of two threads.
        torch.set_num_threads(1 if self.partial else min(2, torch.get_num_threads()))

    def write_json(self, content: Row) -> None:
        """What was measured, with the machine and the commit."""
        about = machine("cpu")
        about = {k: about[k] for k in ("commit", "processor", "cpu_variant", "versions")}
        about["threads"] = torch.get_num_threads()
        whole = {"study": self.name, "quick": self.quick, "machine": about, **content}
        text = json.dumps(_plain(whole), separators=(",", ":"), allow_nan=False)
        self.write(f"{self.name}.json", (text + "\n").encode())

    def write_table(self, ending: str, titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        """One table as Markdown, which is returned, and as CSV."""
        text = table(titles, rows)
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([titles, *rows])
        self.write(f"{self.name}{ending}.csv", file.getvalue().encode())
        self.write(f"{self.name}{ending}.md", text.encode())
        print(f"\n{self.name}{ending}\n\n{text}", flush=True)
        return text

    def write(self, name: str, content: bytes | Callable[[], bytes]) -> None:
        """A file of the study."""
        self.out.mkdir(parents=True, exist_ok=True)
        with replacing(self.out / name) as temporary:
            temporary.write_bytes(content() if callable(content) else content)


def _plain(value: Any) -> Any:
    """As JSON has it: no NumPy, no paths, six digits, and null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def ranged(found: tuple[float, float, float], digits: int = 3) -> str:
    """mean [low, high]; the mean alone where there is no interval; or a dash."""
    mean, low, high = found
    if mean != mean or low != low:
        return "-" if mean != mean else f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def changed(found: tuple[float, float, float], digits: int = 3) -> str:
    """+mean [low, high], called a tie where the interval holds 0."""
    mean, low, high = found
    if mean != mean or low != low:
        return "-" if mean != mean else f"{mean:+.{digits}f}"
    tie = " (tie)" if low <= 0 <= high else ""
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{tie}"
