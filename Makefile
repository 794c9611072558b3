# make up     everything set up, a whole cluster in the foreground, Ctrl-C stops it
# make test   what CI runs: checks, then the tests of every commit (real etcd, real processes)
# make nightly  the tests that take longer, every scenario of chaos, fresh schedules, the mutants: hours
# make check  lint, format, types, direction of imports
# make fix    make the client for threads anew, format, and mend what the linter can
# make transcripts  what comes of each script in tests/transcripts is written anew: look at the difference
# make unit   the tests that start no process
# make versions  make unit with each Python of VERSIONS that is here, by its name or pyenv's
# make cover  coverage of the unit tests and of the simulations, with its floor
# make sim    SEED=n [STEPS=m] replays one schedule exactly; COUNT=n plays so many fresh ones
# make soak   fresh schedules for SECONDS, in JOBS processes
# make chaos  every scenario on real processes, with chaos-report.html
# make mutants  the score of the tests against mutations by hand; mutants-report.txt (an hour; not in CI). ONLY="R8 drop" RESUME=1
# make bench  measurements on this machine, beside etcd and Redis; tables, bench-results/results.json, pictures
# make bench-smoke  calls of functions per operation, which CI prints: what has grown by half is told
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UP ?=
VERSIONS ?= 3.12 3.13 3.14
SECONDS ?= 600
JOBS ?= 2

.PHONY: up test nightly check fix transcripts unit cover versions sim soak chaos mutants bench bench-smoke clean

up: $(VENV)/.installed
	@$(BIN)/cellctl dev up $(UP)

test: check
	@$(BIN)/python -m tests.lanes commit
	@$(BIN)/python -m bench.smoke

nightly: check
	@$(BIN)/python -m tests.lanes nightly
	@$(MAKE) versions cover chaos soak mutants

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m tests.twins --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

fix: $(VENV)/.dev
	@$(BIN)/python -m tests.twins
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

transcripts: $(VENV)/.dev
	@TRANSCRIPTS=write $(BIN)/python -m pytest -q -n 0 tests/transcripts

unit: $(VENV)/.dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not nightly" tests/unit tests/transcripts

versions:
	@for v in $(VERSIONS); do \
	  for python in python$$v $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$v.*/bin/python ""; do \
	    $$python -c '' 2>/dev/null && break; done; \
	  [ -n "$$python" ] || { echo "python$$v is not here: left out"; continue; }; \
	  echo "python$$v:"; \
	  $(MAKE) --no-print-directory unit PYTHON=$$python VENV=.venv-$$v || exit 1; \
	done

cover: $(VENV)/.dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not nightly" tests/unit tests/simulation \
	  --cov --cov-report=term:skip-covered

sim: $(VENV)/.dev
ifdef SEED
	@$(BIN)/python -m tests.simulation.replay $(SEED) $(if $(STEPS),--steps $(STEPS))
else
	@$(BIN)/python -m tests.simulation.soak --count $(or $(COUNT),100) --jobs $(JOBS)
endif

soak: $(VENV)/.dev
	@$(BIN)/python -m tests.simulation.soak --seconds $(SECONDS) --jobs $(JOBS)

chaos: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos --report chaos-report.html --keep chaos-kept

mutants: $(VENV)/.dev
	@nice $(BIN)/python -m tests.mutants $(ONLY) --jobs $(JOBS) --report mutants-report.txt $(if $(RESUME),--resume)

bench: $(VENV)/.dev
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.followers
	@$(BIN)/python -m bench.failover --kills 10
	@$(BIN)/python -m bench.moves --mib 256

bench-smoke: $(VENV)/.dev
	@$(BIN)/python -m bench.smoke

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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV).tools build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
