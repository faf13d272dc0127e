# The commands of this project. `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
UV ?= $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)
STAMP := $(VENV)/.synced
HOST ?= 127.0.0.1
PORT ?= 8000
METRICS_PORT ?= 9090
TESTS ?= tests
E2E ?= tests/e2e

.PHONY: help
help: ## List the commands
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 16

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -m venv --without-pip $(VENV)
	@"$(PYTHON)" tools/bootstrap_uv.py $(BIN)/uv

$(STAMP): pyproject.toml uv.lock | $(if $(findstring $(VENV),$(UV)),$(BIN)/uv)
	@echo "Installing what uv.lock names into $(VENV) (the embedded model is 240 MB; a second time takes no time)"
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 1; }
	@"$(UV)" sync --frozen --all-extras --python "$(PYTHON)"
	@touch $(STAMP)

.PHONY: setup
setup: $(STAMP) ## Install everything into .venv

.PHONY: serve
serve: $(STAMP) ## Serve on http://127.0.0.1:8000 with the embedded model; no key, no Redis, no account
	@exec $(BIN)/llm-api serve --host $(HOST) --port $(PORT) --metrics-port $(METRICS_PORT)

.PHONY: test
test: $(STAMP) ## Run all tests, on a real Redis-protocol server and in a real browser
	@$(BIN)/python -m tests.support.chromium
	@$(BIN)/python -m tests.support.old_servers
	@$(BIN)/python -m tests.chart.tools
	@$(BIN)/python -m tests.support.prometheus
	@$(BIN)/pytest $(TESTS)

.PHONY: check
check: $(STAMP) ## Lint, format, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pytest -q -p no:randomly tests/unit/test_imports.py

.PHONY: chart
chart: $(STAMP) ## Make what is generated of the chart: its schema, its table of values, k8s/
	@$(BIN)/python -m tests.chart.tools
	@PATH="$$PATH:$$($(BIN)/python -c 'from tests.chart.tools import FOLDER; print(FOLDER)')" $(BIN)/python charts/generate.py

.PHONY: observability
observability: $(STAMP) ## Make the dashboards, rules and alerts, as plain files and for the chart
	@$(BIN)/python -m observability

.PHONY: e2e
e2e: $(STAMP) ## Run the tests on the cluster that KUBECONFIG names; see docs/kubernetes.md
	@LLM_API_E2E=1 $(BIN)/pytest -p no:randomly -s $(E2E)

.PHONY: load
load: $(STAMP) ## Five minutes of load on a service with a simulated provider, all on this machine, and a report
	@$(BIN)/python -m load.local $(LOAD)

.PHONY: bench
bench: $(STAMP) ## Measure what the service costs beside nginx and its peers (15 minutes; QUICK=1: 3); takes Go
	@$(if $(QUICK),,$(BIN)/python -m load.bench.peers)
	@$(BIN)/python -m load.bench $(if $(QUICK),--quick) $(BENCH)

.PHONY: clean
clean: ## Remove what the other commands made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
