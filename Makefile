# Two commands matter: `make demo` and `make test`. Both set everything up first.
# PYTHON=python3.12 make test picks another interpreter; VENV=DIR keeps its environment apart.

SHELL := /bin/bash
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test test-full lint format setup lock

demo: setup
	@$(BIN)/exegpt demo

test: setup
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

# Goes on where it was broken off; when nothing is left to run (pytest says 5), it has passed before.
test-full: setup
	@EXEGPT_FULL=1 $(BIN)/python -m pytest $(TESTS) || [ $$? -eq 5 ]

lint: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

setup:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash requirements/setup.sh

# Needs `uv`; writes requirements/pythonX.Y.lock with hashes and without an index address.
lock:
	@for version in 3.11 3.12; do \
	  (cd requirements && uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version $$version \
	    --group ../pyproject.toml:dev ../pyproject.toml -o python$$version.lock); \
	done
