# `make` or `make help` lists the targets. Each does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help install train evaluate repeat test test-slow test-gpu lint format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## create .venv with everything that training and the tests need

$(READY): pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

train: install  ## train with the defaults (more: make train ARGS="data=synthetic backbone=tiny")
	@$(BIN)/python -m clipkit.train $(ARGS)

evaluate: install  ## evaluate a model: make evaluate ARGS="model=outputs/train/NAME"
	@$(BIN)/python -m clipkit.evaluate $(ARGS)

repeat: install  ## run a run again and compare its numbers: make repeat RUN=outputs/train/NAME
	@test -n "$(RUN)" || { echo "which run? make repeat RUN=outputs/train/NAME"; exit 2; }
	@$(BIN)/python -m clipkit.repeat run="$(RUN)" $(ARGS)

test: install  ## the tests that need no GPU and little time
	@$(BIN)/python -m pytest -m "not gpu" $(ARGS)

test-slow: install  ## the long tests
	@$(BIN)/python -m pytest -m "slow and not gpu" --slow $(ARGS)

test-gpu: install  ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu --slow -n 0 $(ARGS)

lint: install  ## ruff and mypy
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install  ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install  ## the benchmarks; results go to benchmarks/MAIN_JOB.md
	@$(BIN)/python -m benchmarks.main_job $(ARGS)

clean:  ## remove caches and build leftovers (outputs/ and .venv stay)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
