# Everything a developer or a first-time user runs. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
IMAGE ?= deepcac2:latest
WEIGHTS ?= bundled
PYTEST_ARGS ?=

bin := $(VENV)/bin
stamp := $(VENV)/.installed

# What builds and runs containers: docker where an engine answers, a script laid beside the checkout, or podman.
helper := ../shared/tools/container.sh
CONTAINER_TOOL ?= $(shell if docker version >/dev/null 2>&1; then echo docker; elif [ -x $(helper) ]; then echo $(helper); else echo podman; fi)
engine = $(filter docker podman,$(notdir $(CONTAINER_TOOL)))
container_build = $(CONTAINER_TOOL) build $(if $(engine),-t )$(IMAGE) $(if $(engine),,--layers)
container_run = $(CONTAINER_TOOL) run$(if $(engine), --rm)

.DEFAULT_GOAL := help
.PHONY: help install viewer demo test test-slow check format docs constraints bench container container-test clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(stamp) ## make .venv with everything in it

# torch first and by exact version: whatever build of it is there (CPU or CUDA), the rest then keeps it.
# mhubio pins a typing-extensions that no current torch accepts, so it comes without its dependencies.
$(stamp): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(bin)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	$(bin)/python -m pip install --quiet --no-deps mhubio==0.0.2 segdb==0.0.3
	@touch $@

viewer: $(stamp) ## get the viewer and the charts of the dashboard from the npm registry (needs npm; 50 MB)
	$(bin)/python -m deepcac2.dashboard.fetch

demo: $(stamp) ## simulate one patient, run the whole chain on it, show the result
	rm -rf $(DEMO)
	$(bin)/deepcac2 simulate $(DEMO)/input --patients 1 --seed 11
	$(bin)/deepcac2 run $(DEMO)/input/SIM-0011/ct $(DEMO)/output --devices cpu

test: $(stamp) ## the quick tests
	$(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: $(stamp) ## the tests that take minutes
	$(bin)/python -m pytest -m slow $(PYTEST_ARGS)

check: $(stamp) ## format, lint, types, doctests, consistent dependencies
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/python -m pytest -q tests/test_doctests.py
	@$(bin)/python -m pip check | grep -v -e '^mhubio 0.0.2 has requirement typing-extensions==' -e '^No broken' && exit 1 || echo 'pip check: consistent'

format: $(stamp) ## write what `make check` asks for, where a tool can
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

docs: $(stamp) ## write what docs/ and mhub/ repeat, and meta.json, anew from the code
	$(bin)/python docs/generate.py
	$(bin)/python mhub/generate.py

constraints: ## resolve all dependencies anew and pin them (takes a few minutes)
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet "$$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)"
	build/constraints/bin/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	build/constraints/bin/python .ci/constraints.py > constraints.new
	mv constraints.new constraints.txt

bench: $(stamp) ## measure against the budgets of docs/architecture.md
	$(bin)/python benchmarks/chain.py
	$(bin)/python benchmarks/stock_chain.py --if-installed
	$(bin)/python benchmarks/scaling.py
	$(bin)/python benchmarks/engine.py --series 20000
	$(bin)/python benchmarks/dashboard.py

container: ## build the image $(IMAGE), with the weights $(WEIGHTS)
	$(container_build) --build-arg WEIGHTS=$(WEIGHTS) --build-arg REVISION=$$(git rev-parse HEAD) \
	  --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' __init__.py) $(if $(engine),.)

container-test: $(stamp) ## run the image as a user would and compare with the command line
	DEEPCAC2_CONTAINER_RUN='$(container_run)' DEEPCAC2_IMAGE='$(IMAGE)' \
	  $(bin)/python -m pytest -m slow tests/test_container.py $(PYTEST_ARGS)

clean: ## remove what was built, keep .venv
	rm -rf build dist *.egg-info $(DEMO) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
