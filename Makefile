# `make help` lists the targets. Everything runs in .venv, which is created on first use
# and brought up to date when pyproject.toml or constraints.txt change.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
# Processes that share the tests out among them; each takes about 2 GB.
PYTEST_WORKERS ?= 2
# Of each property, in `make test-properties`
EXAMPLES ?= 10000

# One thread. With networks of this size, OpenMP threads that spin while they wait make training 10-20x slower
# as soon as another process (an env worker, a second run) wants the same core. `make OMP_NUM_THREADS=4 ...` overrides.
export OMP_NUM_THREADS = 1

.PHONY: help install demo test test-slow test-properties test-matrix lint format type check-codestyle commit-checks doc figures benchmark benchmark-speed build clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		command -v $(PYTHON) > /dev/null || { echo "error: '$(PYTHON)' not found; use: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else "error: Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d; use: make PYTHON=python3.11 (for example)" % v)'; \
		$(PYTHON) -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
# Alone: it pins an older mujoco than the constraints have, with which it works as well.
	$(BIN)/python -m pip install --no-deps -c constraints.txt metaworld
	@touch $@

install: $(STAMP)  ## Create .venv with the package and its development tools

demo: $(STAMP)  ## Run the quickstart: demonstrations -> cloning -> fine-tuning
	$(BIN)/python examples/quickstart.py

test: $(STAMP)  ## Run the tests (without those marked slow), with branch coverage and its threshold
	$(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist worksteal --cov=sb3_scoreflow $(PYTEST_ARGS)

test-slow: $(STAMP)  ## Run the tests marked slow
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-properties: $(STAMP)  ## Try each property on 10,000 random examples (make EXAMPLES=1000 ... for fewer)
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/properties --hypothesis-profile nightly $(PYTEST_ARGS)

test-matrix: $(STAMP)  ## Run the core's tests with the oldest and the newest versions of what it needs
	$(BIN)/python .ci/matrix.py

lint: $(STAMP)  ## Check the code with ruff
	$(BIN)/ruff check .

format: $(STAMP)  ## Sort imports and reformat
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

type: $(STAMP)  ## Check the types with mypy
	$(BIN)/mypy

check-codestyle: $(STAMP)  ## Check import order and format, changing nothing
	$(BIN)/ruff check --select I .
	$(BIN)/ruff format --check .

commit-checks: format lint type  ## What to run before a commit

doc: $(STAMP)  ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

figures: $(STAMP)  ## Draw the schematic, the badges and the figures of docs/concepts.md again
	$(BIN)/python docs/figures/drawings.py
	$(BIN)/python docs/figures/concepts.py

benchmark: $(STAMP)  ## Print the benchmark commands (they take long: start them one by one)
	@echo "export OMP_NUM_THREADS=$(OMP_NUM_THREADS)"
	@grep -h "^    python -m benchmarks" benchmarks/*.py benchmarks/*/__init__.py | sed "s#    python#$(BIN)/python#"

benchmark-speed: $(STAMP)  ## Measure time and memory of every part (docs/speed.md)
	$(BIN)/python -m benchmarks.speed

build: $(STAMP)  ## Build the sdist and the wheel into dist/
	rm -rf build
	$(BIN)/python -c "from setuptools.build_meta import build_sdist; build_sdist('dist')"
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:  ## Remove caches and build outputs (.venv stays)
	rm -rf build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache htmlcov .coverage .coverage.*
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
