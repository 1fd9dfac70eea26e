# Needs python3 >= 3.11 and make; everything else is installed into .venv.

GOOD := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(GOOD)' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
CHECKED := $(sort $(dir $(wildcard $(foreach room,workflow stores tests examples benchmarks,$(room)/*.py))))

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 >= 3.11 with venv found; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## 1,000 orders on a SQLite file, killed half-way, nothing lost
	$(BIN)/python examples/orders.py

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest

check: $(STAMP) ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --warnings
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP)-bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

bench: $(STAMP)-bench ## beside the bare limits and the peers: 20 minutes, or ARGS=--quick
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove everything that was made
	rm -rf .venv build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
