# make up     everything set up, a whole cluster in the foreground, Ctrl-C stops it
# make test   what CI runs: checks, then all tests (real etcd, real processes)
# make check  lint, format, types, direction of imports
# make sim    simulation: SEED=n replays one seed, COUNT=n runs so many fresh ones
# make chaos  every scenario on real processes, with chaos-report.html
# make bench  measurements on this machine: operations, a stopped follower, failover
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UP ?=

.PHONY: up test check sim chaos bench clean

up: $(VENV)/.installed
	@$(BIN)/cellctl dev up $(UP)

test: check
	@$(BIN)/python -m pytest

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

sim: $(VENV)/.dev
	@SIM_SEED=$(SEED) SIM_COUNT=$(COUNT) $(BIN)/python -m pytest tests/simulation -x -s

chaos: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos --report chaos-report.html --keep chaos-kept

bench: $(VENV)/.dev
	@$(BIN)/python -m bench.operations
	@$(BIN)/python -m bench.followers
	@$(BIN)/python -m bench.failover

# Debian splits ensurepip off into python3-venv: without it the environment is made by virtualenv
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "metastore needs Python 3.11 or later; this is $$($(PYTHON) --version). Set PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  echo "python3-venv is not there; taking virtualenv"; rm -rf $(VENV); \
	  $(PYTHON) -m pip install --quiet --target $(VENV).tools virtualenv && \
	  PYTHONPATH=$(VENV).tools $(PYTHON) -m virtualenv --quiet $(VENV); }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV).tools build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
