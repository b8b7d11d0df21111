# Every target makes its own environment in .venv, from constraints.txt. On a fresh machine `make demo` is the first command.
#
#   PYTHON=python3.12 make test    another interpreter (delete .venv first)
#   PYTEST_ARGS="-k order" make fast

PYTHON ?= python3
PYTEST_ARGS ?=
BIN := .venv/bin
# modules, not scripts: a script's first line breaks when a checkout is moved or its path is long
PY := $(BIN)/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# two processes on two cores, one thread each: torch's own threads would fight over the cores
TEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test fast slow lint types format docs bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

# A stamp exists only after a complete installation, and holds the path it was made for. Without one (interrupted, failed,
# never made, checkout moved) the environment is built anew; with an old one (pyproject.toml changed) it is brought up to date.
ifneq ($(shell cat .venv/ready 2>/dev/null),$(CURDIR))
.venv/ready: moved
endif
.PHONY: moved
moved: ; @rm -f .venv/ready .venv/ready-docs

# torch comes first and alone, by its pin: that takes the CPU build where one is at hand, and no later command can change it.
.venv/ready: pyproject.toml constraints.txt
	@test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	@echo "installing into .venv"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --editable '.[dev]'
	@echo "$(CURDIR)" > $@

# the first stamp is taken away meanwhile: an interruption here, too, has the environment built anew
.venv/ready-docs: .venv/ready
	@rm -f $<
	@$(PIP) --editable '.[docs]'
	@echo "$(CURDIR)" > $< && touch $@

demo: .venv/ready  ## train and sample a toy model, with pictures, in demo/
	$(BIN)/sde-diffusion demo

test: lint types fast slow  ## everything CI runs: lint, types, fast tests, slow tests

fast: .venv/ready  ## the tests not marked slow
	$(TEST) -m "not slow" $(PYTEST_ARGS)

# pytest leaves with 5 when no test is marked slow, which is no failure
slow: .venv/ready  ## the tests marked slow
	$(TEST) -m slow $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: .venv/ready  ## ruff: format and lint
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: .venv/ready  ## ruff, writing its changes
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

types: .venv/ready  ## mypy: library strict, tests in full
	$(PY) -m mypy

docs: .venv/ready-docs  ## the site, in site/; a warning is an error
	$(PY) -m zensical build --clean --strict

bench: .venv/ready  ## every script of benchmarks/, on its --quick settings
	@set -e; scripts="$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))"; \
	test -n "$$scripts" || { echo "no scripts in benchmarks/"; exit 1; }; \
	for script in $$scripts; do echo "== $$script --quick"; $(PY) $$script --quick; done

clean:  ## all that the other targets made
	rm -rf .venv site demo .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
