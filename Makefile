# Two cores and no GPU are enough for everything here. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= runs/demo
T ?= tests

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

setup: $(READY)  ## create .venv and install the pinned set and dlm into it

$(READY): pyproject.toml .ci/constraints.txt
	@echo "1 of 2: making the virtual environment $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@echo "2 of 2: installing dlm and the packages it was tested with; this takes minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## train a small model on Python source, then sample, infill and evaluate it
	@BIN=$(BIN) RUN=$(RUN) bash .ci/demo

test: $(READY)  ## run the tests and name the slowest; T=tests/diffusion for a part, PYTEST="-m 'not long'" for the quick ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 10 $(PYTEST) $(T)

check: $(READY)  ## format, lint, types, docstrings, and that each floor imports only the floors below
	$(BIN)/ruff format --check dlm tests
	$(BIN)/ruff check dlm tests
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet dlm
	$(BIN)/lint-imports

format: $(READY)  ## format the code and sort its imports
	$(BIN)/ruff check --fix-only --quiet dlm tests
	$(BIN)/ruff format dlm tests
