SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first of these that is here; all give the same run ids and the same files.
PYTHONS := python3.11 python3.12 python3.13 python3
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(or $(firstword $(foreach one,$(PYTHONS),$(shell $(one) -c '$(SUPPORTED)' 2> /dev/null && echo $(one)))),$(error \
  none of $(PYTHONS) is Python 3.11, 3.12 or 3.13; name one: make PYTHON=/path/to/python))
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FEATURES := data/features/_made
FLIGHTS := data/models/flights.keras
CHECKED := job models benchmarks deploy docs tests
# For two cores: tests wait for servers, leases and engines. A file's tests share what they start, so they stay
# together.
PROCESSES ?= 3
IN_PARALLEL := --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder

# What builds images, and what more it is told (--build-arg=BASE_IMAGE=…).
CONTAINERS ?= docker
BUILD = $(CONTAINERS) build $(BUILD_FLAGS)
LAUNCHER ?= localhost/scoring-launcher

.PHONY: template template-image help install demo servers test test-fast lint format bench lock clean flink-up flink-down flink-test

help: ## list every chore
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## build .venv from the lock file

$(INSTALLED): requirements.lock pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(FLIGHTS) ## score a night of real flights, and show how far off the predictions are
	$(BIN)/python -m job score --input 'data/features/ds=2013-12-*' --model $(FLIGHTS) \
	  --keys flight_id --output data/predictions --if_exists=replace
	$(BIN)/python -m models.flights evaluate --features data/features --predictions data/predictions

$(FLIGHTS): $(FEATURES) models/flights.py models/artifacts.py
	$(BIN)/python -m models train flights --features data/features --output $@

$(FEATURES): models/flights_data.py | $(INSTALLED)
	$(BIN)/python -m models.flights features --output data/features
	touch $@

servers: $(INSTALLED) ## build what tests need: Airflow, readers of Parquet; a Cloud Storage stand-in, Prism, Kubernetes's validation (Go)
	$(BIN)/python -m tests.support.servers.airflow
	$(BIN)/python -m tests.support.servers.readers
	if command -v go > /dev/null; then $(BIN)/python -m tests.support.servers.stores; fi
	if command -v go > /dev/null; then $(BIN)/python -m tests.support.servers.prism; fi
	if command -v go > /dev/null; then $(BIN)/python -m tests.support.servers.kubernetes; fi

test: $(INSTALLED) servers ## run every test (Cloud Storage's stand-in and Prism need Go, Flink Java; images Go, buildah, root)
	if command -v java > /dev/null; then $(BIN)/python -m deploy.flink fetch; fi
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-fast: $(INSTALLED) ## run the tests of single modules that take less than a second each
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'not slow' --durations=5 --durations-min=1 tests/unit

flink-up: $(INSTALLED) ## start a Flink cluster on this machine, or mend it (needs Java; FLINK_PORT=8081)
	$(BIN)/python -m deploy.flink up --port=$(or $(FLINK_PORT),0)

flink-down: $(INSTALLED) ## end that cluster, with every process that it started
	$(BIN)/python -m deploy.flink down

# Exit code 77 (and 2 of make): not run, for want of Beam's job server. Told before anything else is done.
flink-test: $(INSTALLED) ## score nights on such a cluster while its processes are killed (FLINK_JOB_SERVER_JAR=PATH)
	$(BIN)/python -m deploy.flink jar
	$(BIN)/python -m pytest tests/engines/test_flink_nights.py

lint: $(INSTALLED) ## check style, format, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports
	$(BIN)/python -m docs.architecture --check
	$(BIN)/python -m docs.flags --check
	$(BIN)/hadolint $(wildcard Dockerfile deploy/*/Dockerfile)

format: $(INSTALLED) ## put the code into the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## measure the job against a hand-tuned loop without Beam (needs 10 GB, an hour)
	$(BIN)/python -m benchmarks.run

template-image: ## build the Flex Template's image on the launcher's (IMAGE=REGISTRY/scoring-job:flex)
	$(BUILD) --target=launcher --tag=$(LAUNCHER) .
	$(BUILD) --file=deploy/dataflow/Dockerfile --build-arg=LAUNCHER=$(LAUNCHER) --tag=$(IMAGE) .

template: template-image ## the same, push it, and write the template (also TEMPLATE=gs://BUCKET/scoring-job.json)
	$(CONTAINERS) push $(IMAGE)
	gcloud dataflow flex-template build $(TEMPLATE) --image=$(IMAGE) --sdk-language=PYTHON \
	  --metadata-file=deploy/dataflow/metadata.json

# COMPILE keeps the versions that are in the files already; `make lock UPGRADE=--upgrade` takes the newest.
# Addresses and annotations stay out: the files must serve whichever index a machine uses.
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --generate-hashes \
  --no-annotate --no-emit-index-url --no-emit-find-links --universal --python-version 3.11 $(UPGRADE)
# What scoring takes, wherever.
WORKERS := --extra gcs --extra s3 --extra dask

lock: ## pin every version again, with hashes (UPGRADE=--upgrade for the newest)
	test -x $(BIN)/uv || $(MAKE) install
	$(COMPILE) pyproject.toml --extra gcs --extra s3 --extra dask --extra dataflow --extra jax --extra diff --extra completion --extra demo --extra dev --output-file requirements.lock
	$(COMPILE) pyproject.toml $(WORKERS) --constraint requirements.lock --output-file requirements-worker.lock
	$(COMPILE) pyproject.toml $(WORKERS) --extra gpu --constraint requirements.lock --output-file requirements-worker-gpu.lock
	$(COMPILE) pyproject.toml $(WORKERS) --extra dataflow --extra diff --extra completion --constraint requirements.lock \
	  --output-file requirements-launcher.lock
	$(COMPILE) deploy/airflow/requirements.in --output-file deploy/airflow/requirements.lock
	$(COMPILE) tests/support/servers/readers.in --output-file tests/support/servers/readers.lock

clean: ## remove what the chores made, except .venv and data
	if test -d build/flink/run; then $(BIN)/python -m deploy.flink down; fi
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
