"""Drawn operator cases under every CPU variant: all agree with the reference, and to the bit.

    python tests/variants.py --cases 1000000 [--minutes 20] [--only none] [--journal FILE]

A case is a call, forward and nearly always backward; tests/drawn_operators.py says how one is
drawn, and a case is counted once for each variant. A block is 200 groups of cases. Each variant has
a process that draws the block from its number, so that bits are compared by digests, a group each;
one of them, by turns, also evaluates the reference, which stands for the others as long as their
bits are the same, and the second derivatives, which are torch's own. `--only none` is of the
operators in plain PyTorch, whose bits are others. One process is at work at a time, with one
thread.

A process that dies, or takes more than a CPU minute for a group, is a crash, and so is whatever is
raised but an AssertionError. Ends with a line of counts, and with 1 where any of them is not 0. A
journal has a line a block: the next run with it counts them, takes those again that went wrong and
goes on behind the last. tests/long.py runs it.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLAIN = "none"  # of DIFFREG_CPU
GROUPS = 200  # of a block
SECONDS = 60  # of CPU time, after which a group hangs

Found = list[dict[str, Any]]  # of a block's groups: cases, digest, operator, what was wrong


def one_group(block: int, index: int, referee: bool) -> dict[str, Any]:
    """Draws and runs it; a referee checks it against the reference."""
    from drawn_agreement import check, digest_of, expected, results
    from drawn_operators import drawn

    group = drawn(block, index)
    row = {"operator": group.operator, "cases": len(group.cases), "digest": "", "wrong": ""}
    group.twice = group.twice and referee
    try:
        found = results(group)
        row["digest"] = digest_of(found[0])
        if referee:
            check(group, found, expected(group))
    except Exception as error:
        kind = "disagreement" if isinstance(error, AssertionError) else "crash"
        said = f"{kind}: {type(error).__name__}: {error}"[:300].replace("\n", " ")
        row["wrong"] = f"{said}: {str(group)[:700]}"
    return row


def work() -> None:
    """Blocks from standard input, "number referee"; a line of JSON a group, then CPU seconds."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        block, referee = map(int, line.split())
        start = time.process_time()
        for index in range(GROUPS):
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # ends the process
            print(json.dumps(one_group(block, index, bool(referee))), flush=True)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(time.process_time() - start), flush=True)


class Worker:
    """A process of one variant, started again after a crash."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            env=os.environ | {"DIFFREG_CPU": self.variant, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, block: int, referee: bool) -> tuple[Found, float]:
        """Its groups, of which the last ended the process where there are too few; CPU seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{block} {int(referee)}\n")
        self.process.stdin.flush()
        found: Found = []
        for line in self.process.stdout:
            row = json.loads(line)
            if not isinstance(row, dict):
                return found, row
            found.append(row)
        wrong = f"crash: the process ended with status {self.process.wait()}"
        self.start()
        return [*found, {"operator": "", "cases": 0, "digest": "", "wrong": wrong}], 0.0


def run_block(workers: list[Worker], block: int) -> dict[str, Any]:
    """Its line of the journal."""
    compiled = [worker.variant for worker in workers if worker.variant != PLAIN]
    row: dict[str, Any] = {"block": block, "cases": {}, "seconds": 0.0, "wrong": []}
    digests = {}
    for worker in workers:
        variant = worker.variant
        referee = variant == PLAIN or variant == compiled[block % len(compiled)]
        found, seconds = worker.run(block, referee)
        row["cases"][variant] = sum(group["cases"] for group in found)
        row["seconds"] = round(row["seconds"] + seconds, 2)
        row["wrong"] += [
            f"{variant}, block {block}, group {index}: {group['wrong']}"
            for index, group in enumerate(found)
            if group["wrong"]
        ]
        if variant in compiled:
            digests[variant] = [group["digest"] for group in found]
    row["wrong"] += differing(digests, block)
    return row


def differing(digests: dict[str, list[str]], block: int) -> list[str]:
    """Groups of which two variants gave other bits; one that was wrong has been said."""
    if len(digests) < 2:
        return []
    first, *others = digests
    return [
        f"{first} and {other}, block {block}, group {index}: disagreement: other bits"
        for other in others
        for index, (one, two) in enumerate(zip(digests[first], digests[other], strict=False))
        if one and two and one != two
    ]


def journal_of(path: Path | None, variants: list[str]) -> dict[int, dict[str, Any]]:
    """Block and line of those that it has of these variants; a line that was cut off is none."""
    rows = {}
    for line in path.read_text().splitlines() if path and path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if list(row["cases"]) == variants:
            rows[row["block"]] = row
    return rows


def blocks(rows: dict[int, dict[str, Any]], first: int) -> Iterator[int]:
    """Those that went wrong, again; then the next ones."""
    yield from [block for block, row in rows.items() if row["wrong"]]
    yield from itertools.count(max(rows, default=first - 1) + 1)


def total_of(rows: dict[int, dict[str, Any]]) -> Counter[str]:
    """Cases of each variant."""
    return sum((Counter(row["cases"]) for row in rows.values()), Counter())


def said_of(rows: dict[int, dict[str, Any]]) -> str:
    """All counts in a line."""
    cases = total_of(rows)
    wrong = [line for row in rows.values() for line in row["wrong"]]
    crashes = sum("crash:" in line for line in wrong)
    parts = ", ".join(f"{number} {variant}" for variant, number in cases.items())
    rate = cases.total() / max(sum(row["seconds"] for row in rows.values()), 1e-9)
    failures = f"{crashes} crashes, {len(wrong) - crashes} disagreements"
    return f"{cases.total()} cases ({parts}), {rate:.0f} a CPU second: {failures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=4800, help="in all, over all variants")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after these")
    parser.add_argument("--first", type=int, default=0, help="the first block, without a journal's")
    parser.add_argument("--only", action="append", help="a variant; may be repeated")
    parser.add_argument("--journal", type=Path, help="a file to which blocks are added")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return work()
    from diffreg.ops._core import build_info

    variants = asked.only or build_info()["cpu_variants"].split()
    rows = journal_of(asked.journal, variants)
    workers = [Worker(variant) for variant in variants]
    end = time.monotonic() + 60 * asked.minutes
    for block in blocks(rows, asked.first):
        again = block in rows
        if time.monotonic() > end or (total_of(rows).total() >= asked.cases and not again):
            break
        row = rows[block] = run_block(workers, block)
        if asked.journal:
            with asked.journal.open("a") as journal:
                journal.write(json.dumps(row) + "\n")
        print("\n".join(row["wrong"]) or said_of(rows), flush=True)
        if not any(row["cases"].values()):
            raise SystemExit("nothing can be drawn at all")
    for worker in workers:
        worker.process.kill()
        worker.process.wait()  # so that its CPU time counts as a child's
    print(said_of(rows))
    raise SystemExit(any(row["wrong"] for row in rows.values()))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
