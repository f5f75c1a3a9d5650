# demo, test, check, fix, sync, bench: nothing else to learn. Each makes the virtual environment first if it is missing.
VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python
CODE = mlflow_opt recipes tests $(if $(wildcard benchmarks/*.py),benchmarks)
# Tests marked slow run in continuous integration only: CI=true make test.
MARK = $(if $(filter true 1,$(CI)),,-m "not slow")

.PHONY: demo test check fix sync bench

demo: $(VENV)/.installed
	$(PY) -m mlflow_opt.commands.demo

# One file a worker, because servers and trained models are shared within a file; one thread each, or the workers wait for each other.
test: check
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(MARK)

check: $(VENV)/.installed
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy $(CODE)
	$(PY) -m mlflow_opt.sync --check

fix: $(VENV)/.installed
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

sync: $(VENV)/.installed
	$(PY) -m mlflow_opt.sync

bench: $(VENV)/.installed
	set -e; for path in benchmarks/[a-z]*.py; do $(PY) -m benchmarks.$$(basename $$path .py); done

# `mlflow run` looks for python and uv on PATH: the tests that start it put the environment's own folder there.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[recipes,serve,dev]'
	touch $@
