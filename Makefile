# `make run` and `make test` need nothing first: both build .venv from the lock files when it is not current.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PPO_VENV := .venv-ppo
LOCKS := requirements.lock requirements-dev.lock requirements-model.lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_WAIT_POLICY := PASSIVE
export OMP_NUM_THREADS ?= 2
WORKERS ?= 2
# In tests each worker's share of the cores: two workers with two threads each on two cores wait for one another.
THREADS ?= $(shell n=$$(( $$(getconf _NPROCESSORS_ONLN) / $(WORKERS) )); echo $$(( n > 1 ? n : 1 )))

.PHONY: help setup run test check format lock demo bench screenshots clean

help:            ## say what there is
	@grep -E '^[a-z]+: .*##|^[a-z]+:  *##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.current  ## build .venv from the lock files; does nothing when it is current

$(VENV)/.current: $(LOCKS) pyproject.toml .ci/make-venv.sh
	@bash .ci/make-venv.sh $(VENV)

run: setup       ## open the window on the sample project (without a display: the whole loop on the terminal)
	@$(BIN)/python -m workbench start

test: setup      ## every test
	@bash .ci/system-libraries.sh $(BIN)/python
	@QT_QPA_PLATFORM=offscreen OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -q

check: setup     ## formatting, lint, types, layering
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: setup    ## mend formatting and what lint can mend
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

demo: setup      ## the whole loop without a screen
	@$(BIN)/python -m workbench demo

bench: setup $(PPO_VENV)/.current  ## the engine beside TRL on the same work (ONLY=sft,ppo REPEATS=3)
	@$(BIN)/python tests/benchmarks/bench.py --ppo-python $(PPO_VENV)/bin/python $(if $(ONLY),--only $(ONLY)) $(if $(REPEATS),--repeats $(REPEATS)) $(BENCH)

$(PPO_VENV)/.current: requirements-dev.lock .ci/make-ppo-venv.sh
	@bash .ci/make-ppo-venv.sh $(VENV) $(PPO_VENV)

lock:            ## resolve pyproject.toml anew in a fresh environment and write the lock files
	@bash .ci/make-lock.sh

screenshots: setup  ## every pane, light and dark, into build/screenshots
	@QT_QPA_PLATFORM=offscreen $(BIN)/python tests/ui/screenshots.py build/screenshots

clean:           ## remove the environment and caches (never a project, never the model cache)
	rm -rf $(VENV) $(PPO_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
