# The two commands of the README, the site of the documentation, and the environment that all use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: env demo test docs clean

env: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "quarterarc needs Python 3.11 or newer; name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	@echo 'installing into .venv, about 2 GB: some minutes'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: env
	$(BIN)/quarterarc demo

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

docs: env # build/site/index.html; `make test` builds it too, with warnings as errors
	$(BIN)/mkdocs build

clean:
	rm -rf .venv build dist
