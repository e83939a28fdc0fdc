# make demo, make test: on a machine that has only Python 3.11 or newer and pip.
# Choose another Python with `make demo PYTHON=python3.13`.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST_OPTIONS ?= -n 2 --dist loadfile --no-loadscope-reorder
DEMO_OPTIONS ?=

.PHONY: help demo test test-all lint docs notebooks

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 8

demo: $(INSTALLED)  ## prune and train a small network on the embedded digits (again: show its results)
	$(BIN)/python -m experiments.cifar demo --resume $(DEMO_OPTIONS)

test: $(INSTALLED)  ## run the tests, but for those that start programs or take minutes
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

# Some of these wait for processes that were killed: a third worker saves time on two cores.
test-all: test  ## run all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m long

lint: $(INSTALLED)  ## check style, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ntksap_jax experiments
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED)  ## build the documentation site: open .docs-build/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(INSTALLED)  ## renew the notebooks from their scripts
	$(BIN)/jupytext --quiet --update --to ipynb $(patsubst %.ipynb,%.py,$(wildcard experiments/notebooks/*.ipynb))

# Installs again when a requirement or a pinned version changed.
$(INSTALLED): setup.cfg pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv: a few minutes, 1.3 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[experiments,dev,docs]'
	touch $@
