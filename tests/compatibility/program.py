"""Writes an exported program that calls every operator, NAME.pt2, and their schemas, NAME.txt.

    PYTHONPATH=. python tests/compatibility/program.py NAME

in the source folder of a release, before schemas change: the program has to load ever after.
"""

import sys
from pathlib import Path

import torch

SIZE = (9, 11)


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Moving and fixed image (1, 1, 9, 11) and a displacement (1, 2, 9, 11) without folds."""
    i, j = torch.meshgrid(*(torch.arange(n).double() for n in SIZE), indexing="ij")
    moving = 0.5 + 0.4 * torch.sin(0.6 * i + 0.3 * j) + 0.1 * torch.cos(0.9 * j)
    fixed = 0.5 + 0.3 * torch.cos(0.5 * i - 0.4 * j)
    u = torch.stack([0.45 * torch.sin(0.7 * i + 0.4 * j), 0.4 * torch.cos(0.5 * i - 0.9 * j)])
    return moving[None, None], fixed[None, None], u[None]


class Program(torch.nn.Module):
    """Every operator under its options, values by name."""

    def forward(self, moving, fixed, u):
        from diffreg import ops

        found = {}
        for interpolation in ("linear", "nearest"):
            for padding in ("border", "zeros"):
                found[f"warp {interpolation} {padding}"] = ops.warp(
                    moving, u, interpolation, padding
                )
        for penalty in ("hyperelastic", "log2", "hinge", "relu"):
            energies = ops.deformation_energy(u, (1.0, 1.5), penalty)
            found |= {f"{penalty} {name}": e for name, e in energies._asdict().items()}
        for reduce in (None, "min", "mean"):
            found[f"determinant {reduce}"] = ops.jacobian_determinant(u, reduce)
        mask = (fixed > 0.4).to(fixed.dtype)
        for masked, weights in (("", None), (" in a mask", mask)):
            found[f"correlation{masked}"] = ops.correlation(moving, fixed, weights)
            found[f"local correlation{masked}"] = ops.local_correlation(moving, fixed, 5, weights)
            found[f"edge scale{masked}"] = ops.gradient_scale(moving, 1.5, weights)
            for variant in ("pls", "smooth", "ngf"):
                found[f"{variant}{masked}"] = ops.parallel_level_sets(
                    moving, fixed, None, 0.1, variant, weights
                )
            mixture = {
                "ssd": 0.3,
                "ncc": 1.0,
                "lncc": 0.2,
                "pls": 0.1,
                "smooth_pls": 0.2,
                "ngf": 2.0,
            }
            terms = ops.registration_objective(
                moving, fixed, u, mixture, mask=weights, return_warped=True
            )
            found |= {f"objective {name}{masked}": t for name, t in terms._asdict().items()}
        _, found["gradient"] = ops.registration_objective_value_and_gradient(
            moving, fixed, u, {"ncc": 1.0, "pls": 0.2}, padding="zeros", penalty="log2"
        )
        return found


def exported() -> torch.export.ExportedProgram:
    """The program without what only a debugger reads: source lines are most of the file."""
    with torch.no_grad():
        program = torch.export.export(Program(), images(), strict=False)
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    return program


def schemas() -> str:
    """Those of all operators, one a line."""
    names = sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith("diffreg::"))
    found = [getattr(torch.ops.diffreg, name.removeprefix("diffreg::")) for name in names]
    return "".join(f"{operator.default._schema}\n" for operator in found)


if __name__ == "__main__":
    torch.export.save(exported(), f"{sys.argv[1]}.pt2")
    Path(f"{sys.argv[1]}.txt").write_text(schemas())
