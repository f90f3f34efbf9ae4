# Two commands do everything: `make reproduce` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3
SCALE ?= quick
BIN := .venv/bin
UV := $(BIN)/uv
READY := .venv/.ready
# Where bytecode is not kept (containers often say so) each of many processes compiles 2,000 modules as it starts.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-slurm stress lab clean lock audit notebooks book

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo "  SCALE=laptop or SCALE=paper with make reproduce; FRESH=1 to train what is published, too; REDRAW=1 to execute what has not changed; PYTHON=python3.12 for another interpreter"

setup: $(READY) ## the project's own environment in .venv, from requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "setting up .venv (once; about 5 GB are installed)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

reproduce: $(READY) ## run every notebook, redraw every table and figure, judge every claim
	@$(BIN)/sparserobust reproduce --scale $(SCALE) $(if $(REDRAW),--redraw) $(if $(FRESH),--fresh)

test: $(READY) ## style, types, unit tests, notebooks against their stored outputs
	@echo "style (ruff), types (mypy), layers (import-linter)"
	@$(BIN)/ruff check lib tests benchmarks notebooks docs
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@echo "unit tests, one run of each kind from nothing, every notebook with its solutions"
	@$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --durations=20

test-slurm: $(READY) ## a sweep on a real SLURM, which root on Debian gets for it and loses again; else left out
	@$(BIN)/python -m pytest tests/cluster -rs -s

stress: $(READY) ## kills, crowds, damaged files, full disks, fuzz: is anything lost, or believed that is wrong? (ten minutes)
	@$(BIN)/python benchmarks/stress

lab: $(READY) ## JupyterLab, opened at the notebooks; as root: make lab ARGS=--allow-root
	@$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

notebooks: $(READY) ## execute the committed notebooks anew, in place
	@$(BIN)/sparserobust refresh

book: $(READY) ## the web book, build/book/html/index.html, from what is committed; offline
	@$(BIN)/python docs/book.py

lock: $(READY) ## new pins for requirements.lock, after a change of pyproject.toml
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras --custom-compile-command "make lock" pyproject.toml -o requirements.lock

audit: $(READY) ## which pins of requirements.lock are withdrawn (yanked) or have known vulnerabilities; needs the network
	@said=$$($(UV) pip compile --universal --python-version 3.11 --no-deps requirements.lock 2>&1 >/dev/null) || { echo "$$said"; exit 1; }; \
	echo "$$said"; if echo "$$said" | grep -q "is yanked"; then exit 1; fi
	@$(UV) tool run pip-audit --strict --disable-pip --require-hashes -r requirements.lock

clean: ## remove the environment, build/ and trained runs; data, published records and figures/ stay
	@rm -rf .venv build data/runs .pytest_cache .ruff_cache .mypy_cache .hypothesis lib/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed .venv, build/, data/runs/ and caches"
