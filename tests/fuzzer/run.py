"""The CPU operators under libFuzzer, AddressSanitizer and UBSan; needs clang and its runtime.

    python tests/fuzzer/run.py [--minutes 60] [--variant avx2]

Ends with a line of counts, and with 1 where something was found: the case that did it lies in
build/fuzzer beside the corpus, and `build/fuzzer/operators-VARIANT FILE` runs it again.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzzer"
TORCH = Path(torch.__file__).parent
SANITIZERS = ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined"]
# Of CMakeLists.txt those that change values; -O1 for the sanitizers.
FLAGS = ["-std=c++20", "-O1", "-g", "-w", "-ffp-contract=off", "-fno-math-errno"]
INCLUDE = [f"-isystem{TORCH}/include", f"-isystem{TORCH}/include/torch/csrc/api/include"]
STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"
VARIANTS = {"baseline": [], "avx2": ["-mavx2", "-mfma"]}


def compiled(source: Path, words: list[str], out: Path) -> Path:
    """The source as an object, where it is newer than that or a header is."""
    seen = [source, Path(__file__), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.inc")]
    if not out.exists() or out.stat().st_mtime < max(path.stat().st_mtime for path in seen):
        words = [*FLAGS, *SANITIZERS, *INCLUDE, *words]
        subprocess.run(["clang++", *words, "-c", source, "-o", out], check=True)
    return out


def built(variant: str) -> Path:
    folder = BUILD / variant
    folder.mkdir(parents=True, exist_ok=True)
    drivers = sorted(ROOT.glob("csrc/*/*_cpu.cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = pool.map(
            lambda d: compiled(d, [STABLE, *VARIANTS[variant]], folder / f"{d.stem}.o"), drivers
        )
        target = compiled(Path(__file__).with_name("operators.cpp"), [], folder / "operators.o")
        objects = [*objects, target]
    out = BUILD / f"operators-{variant}"
    link = [f"-L{TORCH}/lib", f"-Wl,-rpath,{TORCH}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    sanitizers = ["-fsanitize=fuzzer,address,undefined"]
    subprocess.run(["clang++", *sanitizers, *objects, *link, "-o", out], check=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--variant", choices=VARIANTS, default="baseline")
    options = parser.parse_args()
    if not shutil.which("clang++"):
        sys.exit(
            "fuzzer: clang++ was not found (Debian, Ubuntu: apt install clang libclang-rt-14-dev)"
        )
    program = built(options.variant)
    corpus = BUILD / "corpus"
    corpus.mkdir(exist_ok=True)
    words = [f"-max_total_time={60 * options.minutes:.0f}", "-max_len=2000", "-timeout=60"]
    words += ["-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={BUILD}/"]
    # torch's own libraries keep what they have at the end; tests/ops/test_leaks.py is of leaks.
    settings = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    done = subprocess.Popen(
        [program, *words, corpus], env=os.environ | settings, stderr=subprocess.PIPE, text=True
    )
    assert done.stderr is not None
    last, counts = "", {}
    for line in done.stderr:
        if found := re.match(r"stat::(\w+):\s+(\d+)", line):
            counts[found[1]] = int(found[2])
        elif re.match(r"#\d", line):
            last = " ".join(line.split()[2:8])
        else:
            print(line, end="", flush=True)
    failed = done.wait() != 0
    cases = counts.get("number_of_executed_units", 0)
    print(f"{options.variant}: {cases} cases, {'a finding' if failed else 'no finding'}; {last}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
