"""Labelled volumes as manifests that `diffreg train`, `evaluate` and `register` take.

    python examples/volume_manifests.py FOLDER brain2mm OUT --validate 1 --test 5

FOLDER has pairs.csv (group, moving, fixed, moving_label, fixed_label: paths in it; a file NAME_...
is of the person NAME), in which nobody is in two pairs. OUT gets

    test.csv        the first pairs of the group, with labels
    validate.csv    the pairs after those, with labels
    train.csv       the images of everybody else, without labels
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

COLUMNS = ("moving", "fixed", "moving_label", "fixed_label", "group")


def person(path: str) -> str:
    return Path(path).name.partition("_")[0]


def pairs_of(folder: Path, group: str) -> list[tuple[str, ...]]:
    """Rows of COLUMNS; their group is the person whose image is fixed."""
    with (folder / "pairs.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == group]
    paths = [tuple(str((folder / row[name]).resolve()) for name in COLUMNS[:4]) for row in rows]
    return [(*row, person(row[1])) for row in paths]


def write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("group")
    parser.add_argument("out", type=Path)
    parser.add_argument("--validate", type=int, default=1, metavar="N", help="pairs (1)")
    parser.add_argument("--test", type=int, default=5, metavar="N", help="pairs (5)")
    options = parser.parse_args()
    pairs = pairs_of(options.folder, options.group)
    kept = options.test + options.validate
    if len(pairs) <= kept:
        parser.error(f"{kept} pairs are kept out, and there are {len(pairs)} of {options.group}")
    apart = {person(path) for pair in pairs[:kept] for path in pair[:2]}
    images = sorted({path for pair in pairs[kept:] for path in pair[:2]})
    if common := apart.intersection(map(person, images)):
        parser.error(f"{', '.join(sorted(common))} would be trained on and tested")
    options.out.mkdir(parents=True, exist_ok=True)
    write_table(options.out / "test.csv", COLUMNS, pairs[: options.test])
    write_table(options.out / "validate.csv", COLUMNS, pairs[options.test : kept])
    write_table(options.out / "train.csv", ("image",), [(path,) for path in images])


if __name__ == "__main__":
    main()
