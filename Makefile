# What a person types. Everything sets itself up: Python 3.11 or newer, pip and a C++ compiler are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
NPROC ?= $(if $(filter-out 0,$(GPUS)),$(GPUS),2)
ARGS ?=
# Hundreds of interpreters are started: each would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE
SIDE_BY_SIDE := --numprocesses 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup train test soak lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(VENV)/installed ## make .venv and install into it

train: setup ## train the default model: one rank per GPU, or 2 on CPU (NPROC=…, ARGS="key=value …")
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --standalone --nproc-per-node $(NPROC) -m train $(ARGS)

test: setup ## run the test suite, CPU and gloo (ARGS="-k name")
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

# One after another: eight ranks and fifty kills beside each other make each other late, and time is what some measure.
soak: setup $(VENV)/triton ## run the long matrices, and kernels by Triton's interpreter
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv and caches, never runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info

# As torch 2.11 for CUDA has it; torch for CPUs has none, and is not to find this one.
$(VENV)/triton: | $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ 'triton==3.6.0'

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "switchyard needs Python 3.11 or newer; try make PYTHON=python3.12 setup" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
