"""Times of the operators on a GPU, with events: against eager PyTorch, torch.compile, CUDA graphs.

GB/s stand against a copy in the same run. Writes bench/results/cuda_time.json.
"""

import argparse
import contextlib
import importlib
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
    "registration_objective",
)
# One image, a batch, and more than any cache holds.
SHAPES = ((1, 256), (16, 256), (16, 2048))


def milliseconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median of interleaved runs."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(3):
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
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def both(
    function: Callable[..., torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    upstream: torch.Tensor,
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Forward and backward."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return lambda: torch.autograd.grad(function(*inputs), wanted, upstream)


def agree(ours: Callable[[], tuple[torch.Tensor, ...]], theirs: Callable[..., object]) -> None:
    """Gradients, but for the few voxels where rounding decides the side of a kink."""
    for own, other in zip(ours(), theirs(), strict=True):
        apart = ~torch.isclose(own, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
        if apart.float().mean() > 1e-3:
            raise AssertionError(f"{int(apart.sum())} gradients of {apart.numel()} differ")


def measure(name: str, samples: int, size: int, compiled: bool, repeats: int) -> dict[str, object]:
    case = importlib.import_module(f"bench_{name}").CASE
    drawn = case.inputs(samples, size)
    inputs = tuple(t.detach().cuda().requires_grad_(t.requires_grad) for t in drawn)
    upstream = torch.rand_like(case.operator(*inputs).detach())
    pixels = samples * size * size
    page = torch.rand(pixels, device="cuda")
    into = torch.empty_like(page)
    ours, theirs = (both(f, inputs, upstream) for f in (case.operator, case.reference))
    agree(ours, theirs)
    functions = {
        "copy": graphed(lambda: into.copy_(page)),
        "forward": lambda: case.operator(*inputs),
        "both": ours,
        "forward_graph": graphed(lambda: case.operator(*inputs)),
        "both_graph": graphed(ours),
        "eager_forward": lambda: case.reference(*inputs),
        "eager_both": theirs,
    }
    with contextlib.suppress(RuntimeError):  # where a reference makes a tensor on the CPU
        functions["eager_both_graph"] = graphed(theirs)
    if compiled:
        functions["compiled_both"] = both(torch.compile(case.reference), inputs, upstream)
    found = milliseconds(functions, repeats)
    moved = {
        "copy": 8,
        "forward_graph": case.bytes_forward,
        "both_graph": case.bytes_forward + case.bytes_backward,
    }
    rates = {name: count * pixels / found[name] / 1e6 for name, count in moved.items()}
    shape = [samples, 1, size, size]
    return {"operator": name, "shape": shape, "milliseconds": found, "gigabytes_a_second": rates}


def main() -> None:
    if not torch.cuda.is_available():
        print("bench-gpu: skipped, there is no GPU")
        return
    from harness import machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    result = {"gpu": torch.cuda.get_device_name(), "machine": machine(), "results": []}
    target = options.output or Path(__file__).parent / "results" / "cuda_time.json"
    for name in OPERATORS:
        for samples, size in SHAPES:
            row = measure(name, samples, size, not options.no_compile, options.repeats)
            result["results"].append(row)
            ms, rate = row["milliseconds"], row["gigabytes_a_second"]
            print(
                f"{name:22} {samples:3} x {size:4}^2  "
                + "  ".join(f"{key} {1e3 * value:.1f}" for key, value in ms.items())
                + " us;  GB/s "
                + "  ".join(f"{key} {value:.0f}" for key, value in rate.items()),
                flush=True,
            )
            target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
