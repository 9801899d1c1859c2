# Everything runs in .venv, which is made once from pinned requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo paper test test-all lint loggers coverage docs docs-serve notebooks clean

help:
	@echo "make demo       train three small networks and show what happens to their neurons"
	@echo "make paper      run the paper's experiments (FAST=1: a short run of them); writes runs/paper or runs/paper-fast"
	@echo "make test       lint, type checks, tests and doctests, without the tests marked slow"
	@echo "make test-all   the same with the slow ones: examples, notebooks and the paper's short run among them"
	@echo "make loggers    the tests of loggers with the clients of Weights & Biases, MLflow and Comet, offline"
	@echo "make coverage   which lines the tests run, child processes counted; writes build/coverage"
	@echo "make docs       build the site, strict; writes build/site (make docs-serve shows it)"
	@echo "make notebooks  execute the notebooks of the tutorials anew"
	@echo "make clean      remove .venv and what the other commands wrote"

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart.py

# FAST=1: a short run of it. DATA_DIR: a folder with MNIST or Fashion-MNIST; by default Debian's package where it is
# installed, else digits. The second opinion on Betti numbers needs the test requirements.
paper: $(VENV)/.test
	$(BIN)/python examples/paper/run_all.py $(if $(FAST),--fast) $(if $(DATA_DIR),--data-dir $(DATA_DIR))

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

test-all: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

loggers: $(VENV)/.loggers
	$(BIN)/python -m pytest -q tests/callbacks/test_loggers.py

coverage: $(VENV)/.test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist worksteal -q
	$(BIN)/coverage combine -q
	$(BIN)/coverage html -q
	$(BIN)/coverage report

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.docs
	$(BIN)/mkdocs serve

notebooks: $(VENV)/.test
	$(BIN)/jupyter execute --inplace docs/tutorials/*.ipynb

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

$(VENV)/.loggers: requirements/loggers.txt $(VENV)/.test
	$(BIN)/pip install --quiet -r requirements/loggers.txt
	touch $@

$(VENV)/.docs: requirements/docs.txt $(VENV)/.demo
	$(BIN)/pip install --quiet -r requirements/docs.txt
	touch $@

clean:
	rm -rf $(VENV) runs build dist .cache .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
