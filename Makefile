# The two commands: `make demo` and `make test`. Both set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow check mutants format clean

demo: .venv/.installed
	$(BIN)/burnish train compressibility

test: .venv/.developed
	$(BIN)/pytest -n 2

slow: .venv/.developed
	$(BIN)/pytest -m slow

check: .venv/.developed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

mutants: .venv/.developed
	$(BIN)/python scripts/mutate.py

format: .venv/.developed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build runs

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/.developed: .venv/.installed
	$(PIP) -e '.[dev]'
	touch $@
