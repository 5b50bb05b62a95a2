#!/usr/bin/env bash
# Nine minutes of a GPU: builds for its architecture, tests, measures; JSON and text into the folder OUT.
#     bench/gpu/run.sh OUT [--dry-run] [--seconds 540] [--only PART ...]
# Needs no network: Python with torch (a CUDA build), numpy, pytest and tqdm, and to build cmake, ninja,
# g++ and nvcc. PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" bench/gpu/run.py "$@"
