"""Where a result comes from: when, by which command and versions, on what, by which objective.

All of it is written into metrics.json; none of it is part of what a result is asked for by, so the
request of a cohort's pair does not change with the day.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from diffreg import __version__
from diffreg.losses import Objective
from diffreg.metrics import displacement_length
from diffreg.registration.result import Registration

KEYS = ("date", "command", "versions", "device", "objective")


def provenance(result: Registration | None = None) -> dict[str, Any]:
    """Date, command, versions and device of what runs now; and how far a result moves the voxels.

    Args:
        result: its mean |u| is over the voxels that were compared, its largest over all.

    Returns:
        date (ISO 8601, with the offset from UTC), command (None outside of the command line),
        versions, device; displacement_mm of a result.

    Example:
        >>> from diffreg.registration.provenance import provenance
        >>> sorted(provenance())
        ['command', 'date', 'device', 'versions']
    """
    found: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": _command(),
        "versions": {
            "diffreg": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "device": device_in_words("cpu"),
    }
    if result is not None:
        length = displacement_length(result.displacement, result.fixed.spacing, result.mask)
        found["displacement_mm"] = length
    return found


def described(objective: Objective, **settings: Any) -> dict[str, Any]:
    """An objective as metrics.json has it.

    Args:
        objective: what was minimised.
        settings: of the method, such as levels and iterations.

    Example:
        >>> from diffreg.losses import Objective
        >>> from diffreg.registration.provenance import described
        >>> described(Objective("ncc"), levels=3)["similarity"]
        {'ncc': 1.0}
    """
    spacing = objective.spacing
    return {
        "similarity": dict(objective.similarity),
        "weights": objective.weights._asdict(),
        "penalty": objective.penalty,
        "threshold": objective.threshold,
        **({"window": objective.window} if "lncc" in objective.similarity else {}),
        "spacing": list(spacing) if isinstance(spacing, tuple | list) else spacing,
        **settings,
    }


def device_in_words(device: torch.device | str) -> str:
    """A GPU's name, or the processor's and how many threads torch uses of it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def in_words(found: Mapping[str, Any]) -> dict[str, str]:
    """What metrics.json says of a result's origin, as a report shows it.

    Args:
        found: metrics.json, or what `provenance` returned; what it lacks is left out.

    Example:
        >>> from diffreg.registration.provenance import in_words
        >>> in_words({"date": "2026-07-31T12:05:00+02:00", "versions": {"diffreg": "0.1.0"}})
        {'date': '2026-07-31 12:05:00 +02:00', 'versions': 'diffreg 0.1.0'}
    """
    words = {}
    if found.get("date"):
        date, offset = found["date"][:19], found["date"][19:]
        words["date"] = f"{date.replace('T', ' ')} {offset}".strip()
    if found.get("command"):
        words["command"] = found["command"]
    if found.get("versions"):
        words["versions"] = ", ".join(f"{name} {v}" for name, v in found["versions"].items())
    if found.get("device"):
        words["device"] = found["device"]
    return words | _objective_in_words(found.get("objective") or {})


def _objective_in_words(found: Mapping[str, Any]) -> dict[str, str]:
    """The mixture of similarities, the weights, and the settings of the method."""
    if not found:
        return {}
    mixture, preset = mixture_in_words(found["similarity"]), found.get("preset")
    weights = ", ".join(f"{name} {weight:g}" for name, weight in found["weights"].items())
    words = {
        "objective": f"similarity {mixture}{f' (preset {preset})' if preset else ''}",
        "weights": f"{weights} ({found['penalty']} penalty of the determinant)",
    }
    for number, channel in enumerate(found.get("channels", ()), start=1):
        pair = f"{channel['moving']} to {channel['fixed']}"
        words[f"channel {number}"] = f"{pair}, weight {channel['weight']:g}"
    if "levels" in found:
        levels, iterations = found["levels"], found["iterations"]
        each = f"{iterations} iterations on each"
        if not isinstance(iterations, int):
            each = f"{', '.join(map(str, iterations))} iterations, from coarse to fine"
        words["levels"] = f"{levels} level{'s' if levels > 1 else ''}, at most {each}"
        steps = found.get("composed_steps", 0)
        if steps:
            each = str(steps) if isinstance(steps, int) else ", ".join(map(str, steps))
            words["levels"] += f", after {each} composed steps"
    return words


def mixture_in_words(similarity: Mapping[str, float]) -> str:
    """Measures with their factors.

    Example:
        >>> from diffreg.registration.provenance import mixture_in_words
        >>> mixture_in_words({"ncc": 1.0, "lncc": 0.2})
        'ncc + 0.2 lncc'
    """
    parts = (name if f == 1 else f"{f:g} {name}" for name, f in similarity.items())
    return " + ".join(parts)


def _command() -> str | None:
    """diffreg's command line, where this process is one."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    is_ours = program.name == "diffreg" or program.parts[-2:] == ("diffreg", "__main__.py")
    return shlex.join(["diffreg", *sys.argv[1:]]) if is_ours else None
