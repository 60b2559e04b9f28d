# Everything a developer types. Bare `make` prints this list.
# .venv-dev holds the project and its tools; .venv is the user's, and ./run_pipeline.sh makes both.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

BIN := .venv-dev/bin
SHELL_SCRIPTS := run_pipeline.sh .ci/run .ci/requirements
CODE := workflows tests .ci $(wildcard benchmarks)
# Arguments for pytest: make test ARGS='-k lock'
ARGS ?=
# Test files at a time; many wait for timeouts, so more than there are cores
JOBS ?= 4
# The oldest supported Python resolves the pins: what it can install, the newer ones can too.
OLDEST ?= python3.10

.PHONY: help dev test soak check static format bench sizes requirements clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev:
	@./run_pipeline.sh --setup-dev

test: dev  ## run the tests (ARGS='-k lock' picks some, ARGS='-m fresh' the fresh clone)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

soak: dev  ## cut runs on EC2 fleets off at some thirty points; nothing may be left (minutes)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m soak $(ARGS)

check: static test  ## everything a change has to pass: format, lint, types, layers, tests, docs

# The docs check (every verb, config key and error class documented) is part of the tests.
static: dev  ## the part of check that runs nothing: format, lint, types, layers, shell scripts
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	for script in $(SHELL_SCRIPTS); do bash -n "$$script"; done
	@if command -v shellcheck >/dev/null; then \
	  echo shellcheck $(SHELL_SCRIPTS); shellcheck $(SHELL_SCRIPTS); \
	else \
	  echo 'shellcheck: not installed, skipped (apt-get install shellcheck)'; \
	fi

format: dev  ## rewrite the code in the house format, with the fixes ruff is sure of
	$(BIN)/ruff check --fix-only --exit-zero $(CODE)
	$(BIN)/ruff format $(CODE)

bench: dev  ## run the benchmarks
	@./run_pipeline.sh --setup
	$(BIN)/python -m benchmarks $(ARGS)

sizes: dev  ## lines per module and function, largest first, against the house limits
	@$(BIN)/python .ci/sizes.py workflows

requirements:  ## resolve and pin requirements.txt and requirements-dev.txt anew (OLDEST=python3.10)
	@OLDEST='$(OLDEST)' .ci/requirements

clean:  ## remove environments and caches (what .workflows/ holds stays)
	rm -rf .venv .venv-dev .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis
	rm -rf build dist *.egg-info
	find workflows tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +
