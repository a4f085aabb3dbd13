# Each target works in a fresh clone: it first creates .venv if necessary.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .venv/.installed
SETUP := .venv/.installed-dev
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0

# On x86 Linux, PyPI's torch is the build for CUDA, with 4 GB of libraries. Without an NVIDIA driver, install PyTorch's
# build for CPUs if its index answers within 3 seconds. `make setup TORCH_INDEX=` uses PyPI in any case.
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(shell [ "$$(uname -sm)" != "Linux x86_64" ] || [ -e /proc/driver/nvidia/version ] || \
	! curl --silent --fail --head --max-time 3 --output /dev/null $(CPU_INDEX)/torch/ || echo $(CPU_INDEX))
# Python compiles a module when it is first imported. Compiling all of them takes 50 s more on two cores.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	$(addprefix --extra-index-url ,$(TORCH_INDEX))

.PHONY: setup setup-dev demo test test-slow test-long check docs bench clean

setup: $(DEMO)

setup-dev: $(SETUP)

.venv/bin/python:
	$(PYTHON) -m venv .venv || { echo "Python has no venv module; on Debian and Ubuntu, run: apt-get install python3-venv"; exit 1; }
	$(INSTALL) --upgrade pip  # the pip of Python 3.11 takes four times as long

$(DEMO): pyproject.toml | .venv/bin/python
	$(INSTALL) --editable '.[stack]'
	@touch $@

$(SETUP): pyproject.toml | .venv/bin/python
	$(INSTALL) --editable '.[dev]'
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
	$(BIN)/pytest -m long

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/pytest tests/docs
	$(BIN)/python -m tests.audit

docs: $(SETUP)
	$(BIN)/python -m docs.generate_reference
	$(BIN)/mkdocs build --quiet --strict

bench: $(SETUP)
	@for name in $(subst /,.,$(patsubst benchmarks/%.py,%,$(filter-out %/trainer.py %/soak.py,$(wildcard benchmarks/*/*.py)))); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis
