"""Times of the operators on a GPU, with events: against eager PyTorch, torch.compile, CUDA graphs.

GB/s stand against a copy in the same run. Writes bench/results/cuda_time.json.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "ops"))

import torch

OPERATORS = (
    "warp",
    "deformation_energy",
    "jacobian_determinant",
    "parallel_level_sets",
    "gradient_scale",
    "correlation",
    "local_correlation",
)


def milliseconds(functions: dict[str, Callable[[], object]], repeats: int = 50) -> dict[str, float]:
    """Median of interleaved runs."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(5):
        for function in functions.values():
            function()
    for _ in range(repeats):
        for name, function in functions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(found) for name, found in times.items()}


def graphed(function: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def both(function: Callable[..., object], inputs: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    """Forward and backward."""

    def run() -> object:
        value = function(*inputs)
        parts = value if isinstance(value, tuple) else (value,)
        return torch.autograd.grad([p.sum() for p in parts], inputs)

    return run


def measure(name: str, samples: int, size: int) -> dict[str, object]:
    case = __import__(f"bench_{name}").CASE
    inputs = tuple(t.cuda().requires_grad_() for t in case.inputs(samples, size))
    page = torch.rand(samples * size * size, device="cuda")
    into = torch.empty_like(page)
    ours, theirs = both(case.operator, inputs), both(case.reference, inputs)
    functions = {
        "copy": lambda: into.copy_(page),
        "forward": lambda: case.operator(*inputs),
        "both": ours,
        "both_graph": graphed(ours),
        "eager": theirs,
        "compiled": both(torch.compile(case.reference), inputs),
    }
    found = milliseconds(functions)
    pixels = samples * size * size
    rates = {
        "copy": 8 * pixels / found["copy"] / 1e6,
        "forward": case.bytes_forward * pixels / found["forward"] / 1e6,
        "both": (case.bytes_forward + case.bytes_backward) * pixels / found["both"] / 1e6,
    }
    shape = [samples, 1, size, size]
    return {"operator": name, "shape": shape, "milliseconds": found, "gigabytes_a_second": rates}


def main() -> None:
    if not torch.cuda.is_available():
        print("bench-gpu: skipped, there is no GPU")
        return
    from harness import machine

    rows = []
    for name in OPERATORS:
        for samples, size in ((1, 256), (16, 256), (1, 4096)):
            rows.append(measure(name, samples, size))
            print(rows[-1], flush=True)
    result = {"gpu": torch.cuda.get_device_name(), "machine": machine(), "results": rows}
    target = Path(__file__).parent / "results" / "cuda_time.json"
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
