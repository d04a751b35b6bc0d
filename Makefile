# The two commands a newcomer needs are `make speedrun` and `make test`; each sets everything up first.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.PHONY: speedrun test test-k8s test-all lint types up down bench tpu lock clean

speedrun: $(READY)  ## train the demo agent, write the report (ARGS="--preset d3 --set training.steps=50")
	$(BIN)/nanocode speedrun $(ARGS)

test: $(READY)  ## the tests, three at a time since many wait: under 15 minutes on two cores
	$(BIN)/pytest -n 3 --dist worksteal -m "not slow and not k8s" $(ARGS)

test-k8s: $(READY)  ## the launcher on a Kubernetes control plane of this machine (needs Go, which builds it once)
	$(BIN)/pytest -m k8s $(ARGS)

test-all: $(READY)  ## with the long ones
	$(BIN)/pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

up: $(READY)  ## Prefect server, worker and deployments on this machine
	$(BIN)/nanocode up

down: $(READY)
	$(BIN)/nanocode down

bench: $(READY)  ## the figures that need nothing else here; each script ends with one JSON line
	set -e; for script in speedrun decode train_cpu resume; do echo "== $$script"; $(BIN)/python benchmarks/$$script.py; done

# The lock holds every dependency with its hashes, so pip has nothing to resolve.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; install Python 3.11 or name another: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

tpu: $(READY)  ## libtpu: to train on a TPU, and for `nanocode plan` to compile for one anywhere (200 MB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-tpu.lock

COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links
AS_LOCKED = $(COMPILE) --constraint requirements.lock

lock: $(READY)  ## after a change of the dependencies in pyproject.toml
	$(COMPILE) --extra dev --extra gke pyproject.toml --output-file requirements.lock
	echo 'libtpu==0.0.42.*' | $(COMPILE) - --output-file requirements-tpu.lock
	echo 'jax[cuda12]' | $(AS_LOCKED) - --output-file requirements-cuda.lock
	$(AS_LOCKED) --extra gke pyproject.toml --output-file docker/worker.lock
	$(AS_LOCKED) --excludes docker/trainer-excludes.txt pyproject.toml --output-file docker/trainer.lock

clean:  ## remove the environment; the store stays
	rm -rf $(VENV) *.egg-info
