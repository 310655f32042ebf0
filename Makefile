# Two commands: `make reproduce` (the quick table) and `make test`. Each sets up .venv first, where it is missing.

PY ?= python3
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
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: reproduce test quick-test lock speed quick-speed

reproduce: .venv/.ok
	dvc repro
	@python bench.py leaderboard --committed
	@awk '/^## /{shown = /^## digit/} shown' results/LEADERBOARD.md

test: .venv/.ok
	ruff check .
	python -m pytest

quick-test: .venv/.ok
	python -m pytest -m "not slow"

speed: .venv/.ok
	python -m pytest benchmarks/speed --benchmark-columns=median,iqr,rounds --benchmark-sort=name

# One round of each, which measures nothing: whether the suite still runs.
quick-speed: .venv/.ok
	python -m pytest benchmarks/speed --benchmark-disable

.venv/.ok: requirements.lock
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	  || { echo "Python 3.11 or 3.12 is needed: make PY=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@[ $$(df -Pk . | awk 'NR == 2 {print $$4}') -gt 7340032 ] || [ -d .venv/lib ] \
	  || { echo "7 GB of free disk are needed for the environment (torch and its CUDA libraries)"; exit 1; }
	$(PY) -m venv .venv
	.venv/bin/python -m pip install -q uv
	.venv/bin/uv pip install -q --python .venv/bin/python --require-hashes -r requirements.lock
	@touch $@

# After a change of the dependencies in pyproject.toml.
lock:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate -o requirements.lock
