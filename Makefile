# What people and CI run. Every target sets up what it needs; see `make help`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Another place for torch's wheel, for example: TORCH_INDEX=--index-url=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PYTEST_ARGS ?=
BENCH_ARGS ?= --quick
SOAK_SECONDS ?= 600
SOAK_ARGS ?=
FUZZ_EXAMPLES ?= 5000

.DEFAULT_GOAL := help
.PHONY: help setup browser kernels demo up test lint format generate bench soak fuzz e2e lock clean

help: ## Lists the targets
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed browser ## Makes the virtual environment with everything pinned, and gets what tests need

# The tests of the gateway's page drive a real Chromium. Debian's, if we may install it; else the tests say what is missing.
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300
CHROMIUM := $(APT) install -y --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1
browser:
	@command -v "$${TIDEWHEEL_CHROMIUM:-chromium}" >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing chromium for the tests of the gateway's page"; \
		$(CHROMIUM) || { $(APT) update >/dev/null 2>&1 && $(CHROMIUM); } && exit 0; \
	fi; \
	echo "There is no chromium: install it, or name one with TIDEWHEEL_CHROMIUM, for the tests of the gateway's page"

$(VENV)/.installed: pyproject.toml requirements.lock requirements-data.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tidewheel needs Python 3.11 or newer; set PYTHON"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qy python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); } \
		|| { echo "cannot make $(VENV): install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (the first time takes a few minutes)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock $(TORCH_INDEX) torch
	@$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.lock
	@touch $@

kernels: $(VENV)/.installed ## Compiles the engine's CPU kernels after a change of their source
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .

demo: $(VENV)/.installed ## Starts a cluster, serves a model, asks it questions, tears everything down
	@$(BIN)/tidewheel demo

up: $(VENV)/.installed ## Starts a cluster with the operator and keeps it until Ctrl-C
	@$(BIN)/tidewheel up

test: setup ## Runs every test, also the slow ones
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed ## Checks style, types, layers and that generated files are current
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/tidewheel crds --check
	@$(BIN)/tidewheel docs --check

format: $(VENV)/.installed ## Formats the code and mends what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

generate: $(VENV)/.installed ## Writes crds/, the chart's copy of them and the reference pages
	@$(BIN)/tidewheel crds
	@$(BIN)/tidewheel docs

bench: $(VENV)/.installed ## Runs the benchmarks; BENCH_ARGS= for the whole of them
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file $(BENCH_ARGS); done

soak: $(VENV)/.installed ## Breaks a service under load for SOAK_SECONDS and judges how it held
	@$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS) $(SOAK_ARGS)

fuzz: $(VENV)/.installed ## Runs the fuzz tests with FUZZ_EXAMPLES inputs each
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest --hypothesis-profile=fuzz --timeout=0 \
		$(wildcard tests/unit/*/test_fuzzed_*.py tests/local/*/test_fuzzed_*.py) $(PYTEST_ARGS)

e2e: $(VENV)/.installed ## Runs the end-to-end tests, against KUBECONFIG=... if given
	@TIDEWHEEL_E2E_KUBECONFIG="$(KUBECONFIG)" $(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

lock: ## Writes requirements.lock anew from what a fresh environment resolves to
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet $(TORCH_INDEX) 'torch==2.13.0'
	$(VENV)-lock/bin/pip install --quiet '.[dev]'
	{ echo "# Constraints for every install; written by \`make lock\`."; \
	  $(VENV)-lock/bin/pip freeze --exclude tidewheel | sed 's/^torch==\([0-9.]*\).*/torch==\1/'; } > requirements.lock
	rm -rf $(VENV)-lock

clean: ## Removes the environment and what tools left behind
	rm -rf $(VENV) build *.egg-info operator/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .tidewheel
