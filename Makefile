# Each target works in a fresh clone: it first creates .venv if necessary.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .venv/.installed
SETUP := .venv/.installed-dev
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0
# Many container images forbid Python to store compiled modules. Then each Ray worker compiles torch for 3 s at its start.
export PYTHONDONTWRITEBYTECODE =

# Packages are installed from the lock files in locks/: each file is checked against the sha256 in the lock. Torch has a
# lock of its own. On x86 Linux, PyPI's torch is the build for CUDA, with 4 GB of libraries. Without an NVIDIA driver,
# PyTorch's build for CPUs in the same version is installed if pip finds it in PyTorch's index or a `find-links` folder.
# This index is used if it answers within 3 seconds. `make setup TORCH_INDEX=` does not use it in any case. pip compares
# the file with the sha256 that PyTorch's index lists. For a file in a folder, give it: `make setup TORCH_SHA256=...`.
NVIDIA_DRIVER := $(wildcard /proc/driver/nvidia/version)
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(shell [ "$$(uname -sm)" != "Linux x86_64" ] || [ -n "$(NVIDIA_DRIVER)" ] || \
	! curl --silent --fail --head --max-time 3 --output /dev/null $(CPU_INDEX)/torch/ || echo $(CPU_INDEX))
TORCH_VERSION := $(shell sed -n 's/^torch==\([^ ]*\) .*/\1/p' locks/torch.txt)
# Python compiles a module when it is first imported. Compiling all of them takes 50 s more on two cores.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps
LOCKED := $(INSTALL) --no-build-isolation --require-hashes --requirement

# On failure, the errors of pip are printed, except that there is no such build.
NO_BUILD := -e 'Could not find a version that satisfies' -e 'No matching distribution' -e 'Ignored the following'
CPU_TORCH = errors="$$(echo 'torch==$(TORCH_VERSION)+cpu $(TORCH_SHA256:%=--hash=sha256:%)' | \
	$(INSTALL) $(addprefix --extra-index-url ,$(TORCH_INDEX)) --requirement /dev/stdin 2>&1)" || \
	{ echo "$$errors" | grep -v $(NO_BUILD) >&2; false; }

# First pip, because the pip of Python 3.11 takes four times as long, and what builds the packages without a wheel.
define install
$(LOCKED) locks/setup.txt
$(LOCKED) locks/$(1).txt
$(if $(NVIDIA_DRIVER),,$(CPU_TORCH) || )$(LOCKED) locks/torch.txt
$(INSTALL) --no-build-isolation --editable .
endef

.PHONY: setup setup-dev demo test test-slow test-long check lock sbom release docs screenshots bench gpu clean

setup: $(DEMO)

setup-dev: $(SETUP)

.venv/bin/python:
	$(PYTHON) -m venv .venv || { echo "Python has no venv module; on Debian and Ubuntu, run: apt-get install python3-venv"; exit 1; }

$(DEMO): pyproject.toml locks/setup.txt locks/demo.txt locks/torch.txt | .venv/bin/python
	$(call install,demo)
	@touch $@

$(SETUP): pyproject.toml locks/setup.txt locks/development.txt locks/torch.txt | .venv/bin/python
	$(call install,development)
	@touch $@ $(DEMO)

demo: $(DEMO)
	$(BIN)/python -m tailorbird.demo $(if $(KEEP),--keep)

# Two processes, each with its own stack, so that one uses the cores while the other waits.
TWO_STACKS := -n 2 --dist loadscope --no-loadscope-reorder

test: $(SETUP)
	$(BIN)/pytest -m "not slow and not long" -n 2 tests/unit tests/k8s
	$(BIN)/pytest -m "not slow and not long" $(TWO_STACKS) tests/integration

test-slow: $(SETUP)
	$(BIN)/pytest -m slow $(TWO_STACKS)

test-long: $(SETUP)
	$(BIN)/pytest -m "long or hypothesis" --hypothesis-profile=search

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/pytest tests/docs
	$(BIN)/python -m locks.generate --check
	$(BIN)/python -m locks.audit $(if $(RELEASE),--strict)

lock: $(SETUP)
	$(BIN)/python -m locks.generate $(if $(UPGRADE),--upgrade)

sbom: $(SETUP)
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -m locks.sbom dist/*.whl

release:
	$(MAKE) check RELEASE=1
	$(MAKE) sbom

docs: $(SETUP)
	$(BIN)/python -m docs.generate_reference
	$(BIN)/mkdocs build --quiet --strict

# Of the demo that `make demo KEEP=1` leaves running.
screenshots: $(SETUP)
	$(BIN)/python -m docs.screenshots

bench: $(SETUP)
	@for name in $(subst /,.,$(patsubst benchmarks/%.py,%,$(filter-out benchmarks/gpu/%,$(wildcard benchmarks/*/*.py)))); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# The acceptance test on a machine with a GPU (benchmarks/gpu/README.md), in .venv if it is there.
gpu:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m benchmarks.gpu $(PART) $(if $(STRICT),--strict) $(if $(REDUCED),--reduced)

clean:
	rm -rf .venv dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
