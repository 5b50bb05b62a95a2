"""make release VERSION=1.2.3: bumps, builds and tests wheel and sdist, writes the notes.

A tree with changes is refused. Nothing is pushed. A dry run, and one that fails, leaves the tree as
it was.
"""

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCHES = ("torch==2.11.0", "torch")  # the oldest, and the newest that there is
VERSION = {
    ROOT / "diffreg/__init__.py": r'(?<=__version__ = ")[^"]+(?=")',
    ROOT / "CITATION.cff": r"(?<=^version: ).+$",
}
CHANGELOG = ROOT / "CHANGELOG.md"


def git(*words: str) -> str:
    run = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return run.stdout


def make(*words: str) -> None:
    if subprocess.run(["make", *words], cwd=ROOT).returncode:
        sys.exit(f"release: `make {' '.join(words)}` failed, as said above; the tree is as it was")


def refusal(version: str) -> str | None:
    """Why there can be no such release from this tree, in one line."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return f"VERSION must be three numbers, as in 1.2.3, got {version!r}"
    current = next(iter(VERSION)).read_text().partition('__version__ = "')[2].partition('"')[0]
    if [*map(int, version.split("."))] <= [*map(int, current.split("."))]:
        return f"VERSION must be above {current}, got {version}"
    if changed := git("status", "--porcelain"):
        return f"the tree has changes; commit them first: {changed.split(maxsplit=1)[1].strip()}"
    if git("tag", "--list", f"v{version}"):
        return f"there is a tag v{version}"
    if not section(CHANGELOG.read_text(), "Unreleased"):
        return "CHANGELOG.md has nothing under '## Unreleased'"
    return None


def section(changelog: str, title: str) -> str:
    """What stands below a title of the changelog."""
    found = re.search(rf"^## {re.escape(title)}[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    return found[1].strip() if found else ""


def bump(version: str) -> None:
    for path, pattern in VERSION.items():
        path.write_text(re.sub(pattern, version, path.read_text(), count=1, flags=re.M))
    title = f"## {version} ({datetime.date.today()})"
    CHANGELOG.write_text(CHANGELOG.read_text().replace("## Unreleased", title, 1))


def test(target: str, torch: str) -> str:
    """The version of torch that the target ran under."""
    make(target, f"TORCH={torch}")
    python = ROOT / f".venv-{target.removeprefix('test-')}" / "bin/python"
    code = "import torch; print(torch.__version__)"
    run = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def build_and_test(version: str) -> None:
    make("wheels")
    oldest, newest = (test("test-wheel", torch) for torch in TORCHES)
    built = test("test-sdist", TORCHES[-1])
    tested = f"Tested: the wheel under torch {oldest} and {newest}, the sdist under {built}."
    print(f"release: {tested}")
    notes = ROOT / "dist" / f"NOTES-{version}.md"
    changes = section(CHANGELOG.read_text(), version)
    notes.write_text(f"# diffreg {version}\n\n{changes}\n\n{tested}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version")
    parser.add_argument("--dry", action="store_true", help="no commit, no tag")
    options = parser.parse_args()
    if reason := refusal(options.version):
        sys.exit(f"release: {reason}")
    files = [str(path) for path in (*VERSION, CHANGELOG)]
    done = False
    try:
        bump(options.version)
        build_and_test(options.version)
        done = not options.dry
    finally:
        if not done:
            git("checkout", "--", *files)
    if done:
        git("commit", "-m", f"Version {options.version}", "--", *files)
        git("tag", f"v{options.version}")
    print(f"release: {options.version} is in dist/, " + ("tagged" if done else "not tagged: dry"))


if __name__ == "__main__":
    main()
