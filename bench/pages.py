"""Writes the tables of bench/results/benchmark.json into docs/benchmarks.md and docs/operators.md.

    python bench/pages.py

After `make bench`; the tests hold the pages against the file.
"""

import argparse
import json
from pathlib import Path

from diffreg.benchmark import tables

ROOT = Path(__file__).parents[1]


def put(page: Path, mark: str, table: str) -> None:
    """In place of what stands between <!-- mark --> and <!-- /mark -->."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n\n{table}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    result = json.loads((ROOT / "bench" / "results" / "benchmark.json").read_text())
    page = ROOT / "docs" / "benchmarks.md"
    for mark, part in tables.PAGE.items():
        put(page, mark, part(result))
    if volumes := tables.volumes(result):
        put(ROOT / "docs" / "operators.md", "volumes", volumes)


if __name__ == "__main__":
    main()
