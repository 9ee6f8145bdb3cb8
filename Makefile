# make demo: restyle two photos, see out/        make test: the tests        make help: everything else
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python from 3.11 to 3.13 that really runs; PYTHON=/path/to/python3 overrules it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.limner-installed
# How tests share the cores; PARALLEL= runs them in one process, in order.
PARALLEL ?= -n auto --dist worksteal

.PHONY: help setup demo test test-slow lint format types bench models gpu-pack gpu-dry clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F': *' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install Limner with everything the tests need

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python from 3.11 to 3.13 found; on Debian: apt-get install python3 python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: $(PYTHON) cannot create a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## restyle two photos with every bundled style; the pictures go to out/
	$(BIN)/limner demo --out out

test: setup  ## run the tests that are not slow, a process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test-slow: setup  ## run the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m 'not gpu'

lint: setup  ## check format and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: setup  ## bring the code into format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup  ## check types
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: setup  ## measure this machine: one table per file of benchmarks/
	set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

models: setup  ## make every bundled model again that is stale (MODELS="--plan" only says which); goes on after a stop
	$(BIN)/python scripts/make_models.py --jobs 2 $(MODELS)

gpu-pack: setup  ## pack pictures for a borrowed GPU and print the calls to make (GPU="--state RUN" goes on); docs/gpu.md
	$(BIN)/python scripts/gpu_run.py pack $(GPU)

gpu-dry: setup  ## go the whole way to a borrowed GPU and back on this CPU, with a tiny budget
	$(BIN)/python scripts/gpu_dry.py

clean:  ## delete the virtual environment and caches; pictures and training runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
