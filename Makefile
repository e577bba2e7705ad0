# What a developer types. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
BENCH_PEERS ?=
LOCK_ARGS ?=

.PHONY: help install env images-offline k8s-up k8s-down cluster-up cluster-down lock proto lint format test demo bench bench-serving up pants docs-check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Make .venv with everything in it; quick when nothing changed
	@tools/bootstrap.sh

demo: install ## Data to trained, deployed, sold model, twice, on this machine
	@.venv/bin/lepton demo $(DEMO_ARGS)

up: install ## Run the platform on this machine until Ctrl-C
	@.venv/bin/lepton up

test: install ## All tests; PYTEST_ARGS='libs/errors -k catalogue' for some
	@$(PYTHON) -m tools.lint imports protos
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

lint: install ## Style, types, import contracts, protos
	@$(PYTHON) -m tools.lint $(LINT_ARGS)

format: install ## Put the code into the house's form
	@$(PYTHON) -m ruff check --fix --exit-zero --quiet .
	@$(PYTHON) -m ruff format .

proto: install ## Generate the types of proto/ into build/proto
	@$(PYTHON) -m tools.proto

docs-check: install ## Do the links in the documentation lead somewhere?
	@$(PYTHON) -m tools.links

bench: install ## Measure what docs/ promises
	@$(PYTHON) -m tools.bench $(BENCH_ARGS)

bench-serving: install ## A replica against other model servers; needs wrk; BENCH_ARGS='--install --write', BENCH_PEERS=folder of theirs
	@BENCH_PEERS='$(BENCH_PEERS)' $(PYTHON) -m tools.bench_serving $(BENCH_ARGS)

env: ## Write .env with secrets of your own, for docker compose
	@tools/env.sh

images-offline: env ## Build the images of the servers that compose.yaml names, where no image registry is within reach
	@tools/images.sh
	@tools/images.sh --env | tools/env.sh --set

k8s-up: ## Apply everything to the Kubernetes cluster of the current context; says where it is, and the key
	@tools/k8s.sh up

k8s-down: ## Remove it from there, its data too
	@tools/k8s.sh down

cluster-up: env ## A Kubernetes of one node on this machine, with the images of this tree in it; needs root, Docker and Go
	@tools/cluster/start.sh

cluster-down: ## Stop it; what it holds stays until tools/cluster/down.sh --purge
	@tools/cluster/down.sh

lock: ## Make requirements/ from pyproject.toml; LOCK_ARGS=--upgrade for newer versions
	@tools/lock.sh $(LOCK_ARGS)

pants: ## Does Pants see the tree as it is? A quick check
	@tools/pants.sh check

clean: ## Remove what make made, except .venv and .tools
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .pants.d *.egg-info libs/sdk/python/*.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -not -path './.tools/*' -prune -exec rm -rf {} +
