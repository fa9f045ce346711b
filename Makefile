# Everything here runs in .venv, which each target makes or brings up to date by itself. Needed on
# the machine: Python 3.11 or newer with pip, git, make.
#
#   make demo ARGS="--url redis://localhost:6379/0"
#   make test ARGS="-x -k quota"
#   make PYTHON=python3.13 test

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3 python3.12 python3.13 python3.14 python; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
  { echo $$python; break; }; done)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-deep soak faults lint types bench bench-docs dev clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Run the demo: four workers, one set of limits, a provider that fails
	@$(BIN)/stanchion demo $(ARGS)

test: $(VENV)/.test ## Run the tests
	@$(BIN)/pytest $(ARGS)

test-deep: $(VENV)/.test ## Run the tests that take minutes
	@$(BIN)/pytest -m deep $(ARGS)

faults: $(VENV)/.test ## Produce every fault of the list, and print what each of them did
	@$(BIN)/pytest -q --fault-report=build/faults.md --fault-report=build/faults.json $(ARGS)

soak: $(VENV)/.test ## Load a fleet for 10 minutes, with a fault every few seconds, and check it
	@$(BIN)/python -m tests.soak $(ARGS)

lint: $(VENV)/.dev ## Check style, formatting, import layers and docstrings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/interrogate src

types: $(VENV)/.dev ## Check the types
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.bench ## Run the benchmarks
	@for file in $(wildcard benchmarks/*.py); do \
	  echo "== $$file"; $(BIN)/python "$$file" $(ARGS) || exit; done

bench-docs: $(VENV)/.bench ## Run those of docs/benchmarks.md and put the figures there
	@PYTHONPATH=benchmarks $(BIN)/python -m harness.publish --measure $(ARGS)

dev: $(VENV)/.dev ## Install all that work on stanchion needs

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .ruff_cache
	find benchmarks src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The package, editable, with one of its extras. Each of these three holds the one before it; bench
# stands beside them.
EXTRAS := demo test dev
# OPA's engine works with every Python here and is declared for 3.14 only; young, hence pinned.
OPA_ENGINE := opa-golib-python-bindings==0.4.4
$(EXTRAS:%=$(VENV)/.%) $(VENV)/.bench: $(VENV)/.%: pyproject.toml $(BIN)/python
	@echo "Installing stanchion[$*] into $(VENV)" \
	  "(a minute or so the first time, seconds after a change of pyproject.toml)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$*]'
	@case $* in test|dev|bench) $(BIN)/python -m pip install -qq --disable-pip-version-check \
	  --no-deps --ignore-requires-python '$(OPA_ENGINE)' ;; esac
	@for extra in $(filter bench,$*) $(EXTRAS); do \
	  touch $(VENV)/.$$extra; test $$extra != $* || break; done

# Debian's python3 has no venv of its own (it is in python3-venv); then virtualenv, from a folder
# that is removed again, makes the environment.
$(BIN)/python:
	@test -n '$(PYTHON)' || { echo "stanchion needs Python 3.11 or newer;" \
	  "say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stanchion needs Python 3.11 or newer, which '$(PYTHON)' is not" >&2; exit 1; }
	@echo "Making $(VENV) with $$('$(PYTHON)' --version)"
	@rm -rf $(VENV)
	@if '$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null; then \
	  '$(PYTHON)' -m venv $(VENV); \
	else \
	  '$(PYTHON)' -m pip install -qq --disable-pip-version-check --target $(VENV).virtualenv virtualenv && \
	  PYTHONPATH=$(VENV).virtualenv '$(PYTHON)' -m virtualenv --quiet $(VENV); \
	  status=$$?; rm -rf $(VENV).virtualenv; \
	  test $$status -eq 0 || { echo "$(PYTHON) has neither venv nor pip:" \
	    "on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }; \
	fi
