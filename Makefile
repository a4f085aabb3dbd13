# Each target works on a fresh clone: it makes .venv first if it has to.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: setup demo test test-slow test-long check docs bench clean

setup: $(SETUP)

$(SETUP): pyproject.toml
	$(PYTHON) -m venv .venv || { echo "no venv module: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip  # Python 3.11's own takes four times as long
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(SETUP)
	$(BIN)/python -m tailorbird.demo $(if $(KEEP),--keep)

test: $(SETUP)
	$(BIN)/pytest -m "not slow and not long" -n 2 tests/unit tests/k8s
	$(BIN)/pytest -m "not slow and not long" --durations=25 tests/integration

test-slow: $(SETUP)
	$(BIN)/pytest -m slow --durations=25

test-long: $(SETUP)
	$(BIN)/pytest -m long --durations=25

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
