# Every target sets up what it needs in .venv, from a clean clone, with plain pip; `make UV=1 TARGET` uses uv instead.
# The second time is quick: .venv/.have-* are stamps, older than pyproject.toml means install again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
WORKSPACE ?= workspace
WORKERS ?= 2
NEEDS := import sys; sys.exit(sys.version_info < (3, 11))

ifdef UV
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.DEFAULT_GOAL := help
.PHONY: help demo up test test-slow test-torch lint format docs bench clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.have-serving  ## Try every system on sample data; writes tour.html
	$(BIN)/octavo tour

up: $(VENV)/.have-serving  ## Run the server on ./workspace
	@test -f $(WORKSPACE)/octavo.toml || $(BIN)/octavo init $(WORKSPACE)
	$(BIN)/octavo up --workspace $(WORKSPACE)

test: lint  ## Check the code, run the tests, print the coverage
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov --cov-report=term

test-slow: $(VENV)/.have-dev  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow --timeout 1800

test-torch: $(VENV)/.have-torch  ## Run the tests of PyTorch models; installs PyTorch, which may take gigabytes
	$(BIN)/python -m pytest tests/serving/test_pytorch_backend.py

lint: $(VENV)/.have-dev  ## Check style, types and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.have-dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.have-docs  ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.have-dev  ## Measure what the README claims; takes a while
	$(BIN)/python benchmarks/serving/run_all.py

clean:  ## Remove what the targets made, not the workspace
	rm -rf $(VENV) site build dist htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.have-venv:
	@test -n "$(PYTHON)" || { echo "octavo needs Python 3.11 or newer, and no python3 was found"; exit 1; }
	@$(PYTHON) -c "$(NEEDS)" || { echo "octavo needs Python 3.11 or newer; this is $$($(PYTHON) -V). Name another: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1" $(if $(UV),uv)
	@touch $@

$(VENV)/.have-serving: $(VENV)/.have-venv pyproject.toml
	$(INSTALL) --editable ".[serving]"
	@touch $@

$(VENV)/.have-dev: $(VENV)/.have-venv pyproject.toml
	$(INSTALL) --editable ".[all]" --group test --group lint
	@touch $@ $(VENV)/.have-serving

$(VENV)/.have-torch: $(VENV)/.have-dev
	$(INSTALL) --editable ".[torch]"
	@touch $@

$(VENV)/.have-docs: $(VENV)/.have-venv pyproject.toml
	$(INSTALL) --editable ".[serving]" --group docs
	@touch $@ $(VENV)/.have-serving
