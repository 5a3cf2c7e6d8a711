# Two commands do everything on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint test-slow test-matrix clean

demo: $(VENV)/.installed
	$(BIN)/tunesmith demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -m "not slow and not gpu and not matrix"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow or gpu"

test-matrix: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m matrix tests/matrix

# Torch first and by plain pip, so that the machine's own build is taken; everything else finds it already there.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("tunesmith needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
