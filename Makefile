# Two commands: `make reproduce` (the quick tables) and `make test`. Each sets up VENV first, where it is missing.
# An environment that has all of pyproject.toml already is used as it is: make PYTHON=/path/to/env/bin/python test

PY ?= python3
VENV ?= .venv
SHELL := /bin/bash
.DELETE_ON_ERROR:

# Threads that spin for long are ruinous on a shared machine; nothing may be fetched from a model hub; DVC is silent.
export OMP_WAIT_POLICY ?= PASSIVE
# Some microseconds before a thread sleeps: small networks run up to twice as fast on free cores. Where other heavy work
# shares them, GOMP_SPINCOUNT=0 is better.
export GOMP_SPINCOUNT ?= 3000
export HF_HUB_OFFLINE ?= 1
export DVC_NO_ANALYTICS ?= 1
# Bytecode is worth ten seconds a process.
export PYTHONDONTWRITEBYTECODE =
ifdef PYTHON
  READY :=
  export PATH := $(dir $(abspath $(PYTHON))):$(PATH)
else
  READY := $(VENV)/.ok
  export PATH := $(abspath $(VENV))/bin:$(PATH)
endif

.PHONY: reproduce test quick-test lint lock speed quick-speed

reproduce: $(READY)
	dvc repro
	@python bench.py leaderboard --committed
	@awk '/^## /{shown = /^## digit/} shown' results/LEADERBOARD.md

# A process for each core and one thread in each: small networks gain little from a second thread.
test quick-test: export OMP_NUM_THREADS = 1

test: lint
	python -m pytest --numprocesses auto --dist worksteal

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

quick-test: $(READY)
	python -m pytest --numprocesses auto --dist worksteal -m "not slow"

speed: $(READY)
	python -m pytest benchmarks/speed --benchmark-columns=median,iqr,rounds --benchmark-sort=name

# One round of each, which measures nothing: whether the suite still runs.
quick-speed: $(READY)
	python -m pytest benchmarks/speed --benchmark-disable

$(VENV)/.ok: requirements.lock
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	  || { echo "Python 3.11 to 3.14 is needed: make PY=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@[ $$(df -Pk . | awk 'NR == 2 {print $$4}') -gt 7340032 ] || [ -d $(VENV)/lib ] \
	  || { echo "7 GB of free disk are needed for the environment (torch and its CUDA libraries)"; exit 1; }
	$(PY) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q uv
	$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python --require-hashes -r requirements.lock
	@touch $@

# After a change of the dependencies in pyproject.toml.
lock:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate -o requirements.lock
