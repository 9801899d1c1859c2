# Everything runs in .venv, which is made once from pinned requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo paper test lint clean

help:
	@echo "make demo   train three small networks and show what happens to their neurons"
	@echo "make paper  run the paper's experiments (FAST=1: a short run of them); writes runs/paper or runs/paper-fast"
	@echo "make test   lint, type checks, tests, doctests and examples"
	@echo "make clean  remove .venv and what demo and tests wrote"

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart.py

# FAST=1: a short run of it. DATA_DIR: a folder with MNIST. The second opinion on Betti numbers needs the test requirements.
paper: $(VENV)/.test
	$(BIN)/python examples/paper/run_all.py $(if $(FAST),--fast) $(if $(DATA_DIR),--data-dir $(DATA_DIR))

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A stamp per set of requirements: the second call of a command installs nothing.
$(VENV)/.demo: requirements/demo.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'lightning-topo needs Python 3.10 or later')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements/demo.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.demo
	$(BIN)/pip install --quiet -r requirements/test.txt
	touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
