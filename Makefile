# Every target works on a bare clone. Only PYTHON (3.10 or newer) and a package index are needed.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=
TABLES ?=
PEERS ?=
QUICK ?=
PYTEST_WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
TORCH := torch==2.13.0
RUNTIME_STAMP := $(VENV)/.installed-runtime
SETUP_STAMP := $(VENV)/.installed-all
INSTALL_INPUTS := pyproject.toml constraints.txt

# One thread a process: the arrays are small, and more threads only get in each other's way.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup tune test test-integration test-kernel lint docs bench-optimizer bench-emulator bench-agent bench-generator bench-two-phase bench-live bench-guard crash-campaign clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "$(PYTHON) was not found: install Python 3.10 or newer, or name one with make PYTHON=/path/to/python3." >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "polythrottle needs Python 3.10 or newer, but $(PYTHON) is" \
	    "$$("$(PYTHON)" -c 'import sys; print(sys.version.split()[0])'): name a newer one with make PYTHON=/path/to/python3." >&2; \
	  exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { \
	  rm -rf "$(VENV)"; \
	  echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; \
	  exit 1; }

# torch comes first so that PIP_ARGS can point to the index with the build for this machine.
$(RUNTIME_STAMP): $(INSTALL_INPUTS) | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[tune,report]"
	@touch $@

$(SETUP_STAMP): $(INSTALL_INPUTS) | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[tune,report,nvidia,emulator,peers,http,triton,onnx,docs,dev]"
	@touch $(RUNTIME_STAMP) $@

setup: $(SETUP_STAMP) ## Install everything into .venv (PIP_ARGS=... for pip, PYTHON=...)

tune: $(RUNTIME_STAMP) ## Tune the emulated Jetson Orin Nano (ARGS=... are added)
	$(BIN)/polythrottle tune --latency-slo 50ms --device emulated:orin-nano-8gb --workload efficientnet-b4 $(ARGS)

# Real mounts, real drivers' libraries and real daemons in real time: minutes, and only on a machine with nothing else to do.
REALTIME := tests/integration tests/e2e/test_auto.py

test: $(SETUP_STAMP) ## Run the tests and check the import arrows (ARGS=... for pytest)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) $(foreach path,$(REALTIME),--ignore=$(path)) -k "not sysfs- and not service-" $(ARGS)
	$(BIN)/lint-imports

test-integration: $(SETUP_STAMP) ## Run what `make test` leaves out: FUSE boards, fake NVML, root helper
	$(BIN)/python -m pytest $(REALTIME) $(ARGS)
	$(BIN)/python -m pytest tests/conformance -k "sysfs- or service-" $(ARGS)

test-kernel: $(SETUP_STAMP) ## Run agent and helper on a real kernel in a small VM (root, QEMU; ARGS=--verbose)
	@PYTHON=$(BIN)/python $(BIN)/python tests/kernel/run.py $(ARGS) || { status=$$?; [ $$status -eq 77 ] || exit $$status; }

lint: $(SETUP_STAMP) ## Check format, style, types and the import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(SETUP_STAMP) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-optimizer: $(SETUP_STAMP) ## Benchmark the optimiser (TABLES=DIR, PEERS=1, QUICK=1)
	$(BIN)/polythrottle bench optimizer $(if $(TABLES),--tables "$(TABLES)") $(if $(PEERS),--peers) $(if $(QUICK),--quick) $(ARGS)

bench-emulator: $(RUNTIME_STAMP) ## Print the emulator beside the paper's numbers
	$(BIN)/polythrottle bench emulator $(ARGS)

bench-agent: $(SETUP_STAMP) ## Measure what the agent costs: sampler, memory, import (QUICK=1)
	QUICK=$(QUICK) $(BIN)/python -m benchmarks.agent_overhead

bench-two-phase: $(RUNTIME_STAMP) ## Split against joint search of the CPU stage (QUICK=1)
	QUICK=$(QUICK) $(BIN)/python -m benchmarks.two_phase

bench-generator: $(SETUP_STAMP) ## Measure the load generator: rate and lateness, beside wrk (cc, wrk; QUICK=1)
	QUICK=$(QUICK) $(BIN)/python -m benchmarks.generator

bench-live: $(RUNTIME_STAMP) ## Count trials that miss the SLO on live traffic, emulated (QUICK=1)
	QUICK=$(QUICK) $(BIN)/python -m benchmarks.live_traffic

bench-guard: $(SETUP_STAMP) ## Measure the guard: from a breach to restored clocks, emulated (FUSE; QUICK=1)
	QUICK=$(QUICK) $(BIN)/python -m benchmarks.guard

crash-campaign: $(SETUP_STAMP) ## Kill agent and helper everywhere: the board must be as it was (QUICK=1)
	$(BIN)/python -m benchmarks.crash_campaign $(if $(QUICK),--quick) $(ARGS)

clean: ## Remove what the targets made, .venv included
	rm -rf "$(VENV)" site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
