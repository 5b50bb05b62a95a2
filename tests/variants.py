"""Drawn operator cases under every CPU variant: all agree with the reference, and to the bit.

    python tests/variants.py --cases 1000000 [--minutes 20] [--first 0] [--only none]

One more variant is none: the operators in plain PyTorch, whose bits are others. A round is 500
cases of each operator in a process of its own per variant, with one seed for all of them. A process
that dies is a crash; so is counted whatever is not an AssertionError. Ends with a line of counts,
and with 1 where any of them is not 0. tests/long.py runs it.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLAIN = "none"  # of DIFFREG_CPU
ROUND = 500  # cases of an operator: hypothesis takes longer for each where there are thousands


def digest_of(tensors) -> str:
    """Of the bits; one NaN is as good as another."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        tensor = tensor.detach().contiguous().clone()
        if tensor.is_floating_point():
            tensor[tensor.isnan()] = float("nan")
        digest.update(tensor.flatten().view(dtype_of_bits(tensor)).numpy().tobytes())
    return digest.hexdigest()[:16]


def dtype_of_bits(tensor):
    import torch

    return torch.uint8 if tensor.element_size() == 1 else torch.int16


def drawn(operator: str, seed: int) -> dict[str, Any]:
    """Digests of all cases of a round, "" for one that went wrong, and what was wrong."""
    from hypothesis import Phase, given, settings
    from hypothesis import seed as seeded
    from test_fuzz_operators import cases, check, fuzz

    digests: list[str] = []
    wrong: list[str] = []

    @seeded(seed)
    @settings(fuzz, max_examples=ROUND, derandomize=False, phases=[Phase.generate])
    @given(cases(operator))
    def one(case):
        digests.append("")
        try:
            check(case)
            values, gradients = case.result()
            digests[-1] = digest_of([*values, *gradients])
        except Exception as error:
            kind = "disagreement" if isinstance(error, AssertionError) else "crash"
            wrong.append(f"{kind}: {type(error).__name__}: {error}"[:300].replace("\n", " "))

    one()
    return {"operator": operator, "digests": digests, "wrong": wrong}


def draw_round(seed: int) -> None:
    """One line of JSON an operator."""
    import torch
    from test_fuzz_operators import OPTIONS

    torch.set_num_threads(1)
    for operator in OPTIONS:
        print(json.dumps(drawn(operator, seed)), flush=True)


def round_of(variant: str, seed: int) -> tuple[dict[str, list[str]], list[str]]:
    """Digests by operator, and what went wrong."""
    done = subprocess.run(
        [sys.executable, __file__, "--round", str(seed)],
        env=os.environ | {"DIFFREG_CPU": variant, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [f"{variant}, seed {seed}, {r['operator']}: {w}" for r in rows for w in r["wrong"]]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        wrong.append(f"{variant}, seed {seed}: crash: status {done.returncode}: {last}")
    return {row["operator"]: row["digests"] for row in rows}, wrong


def differing(found: dict[str, dict[str, list[str]]], seed: int) -> list[str]:
    """Operators of which two variants gave other bits for the same case."""
    first, *others = [variant for variant in found if variant != PLAIN] or [PLAIN]
    return [
        f"{first} and {other}, seed {seed}, {operator}: disagreement: other bits"
        for other in others
        for operator in found[first]
        if found[first][operator] != found[other].get(operator)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=4800, help="in all, over all variants")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after these")
    parser.add_argument("--first", type=int, default=0, help="the first round's seed")
    parser.add_argument("--only", action="append", help="a variant; may be repeated")
    parser.add_argument("--round", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.round is not None:
        return draw_round(asked.round)
    from diffreg.ops._core import build_info

    built = build_info()["cpu_variants"].split()
    variants = asked.only or list(dict.fromkeys([*built, PLAIN]))
    counts: Counter[str] = Counter()
    end, seed = time.monotonic() + 60 * asked.minutes, asked.first
    while sum(counts[v] for v in variants) < asked.cases and time.monotonic() < end:
        found = {}
        wrong = []
        for variant in variants:
            found[variant], lines = round_of(variant, seed)
            counts[variant] += sum(map(len, found[variant].values()))
            wrong += lines
        wrong += differing(found, seed)
        counts.update("crashes" if "crash:" in line else "disagreements" for line in wrong)
        if not any(map(len, found.values())):
            raise SystemExit("\n".join(wrong))  # nothing can be drawn at all
        print("\n".join(wrong) or f"seed {seed}: {dict(counts)}", flush=True)
        seed += 1
    parts = ", ".join(f"{counts[variant]} {variant}" for variant in variants)
    total = sum(counts[variant] for variant in variants)
    failures = f"{counts['crashes']} crashes, {counts['disagreements']} disagreements"
    print(f"{total} cases ({parts}), seeds {asked.first} to {seed - 1}: {failures}")
    raise SystemExit(bool(counts["crashes"] + counts["disagreements"]))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
