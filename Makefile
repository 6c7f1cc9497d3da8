# Everything runs in an environment that `make` itself makes and keeps up to date.
#   make demo                  set up, then run the demonstration
#   make docs                  build the pages as a site, in an environment of their own
#   make test                  set up, then run the tests
#   make test STACK=classic    the same on the classic OpenMMLab packages, in .venv-classic
#   make setup PYTHON=/path/to/python3.12

STACK ?= openmmlab
VENV := $(if $(filter classic,$(STACK)),.venv-classic,.venv)
PY := $(VENV)/bin/python
ARGS ?=
WEB := .venv-web

# An environment keeps its interpreter; otherwise the first one that runs and fits. Candidates are
# tried by running them, because the shims of pyenv exist for versions that are not selected.
IN_RANGE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
FIND_PYTHON = for candidate in "$$(readlink -f $(PY))" python3 python3.11 python3.12 python3.10; do \
	if "$$candidate" -c '$(IN_RANGE)' >/dev/null 2>&1; then echo "$$candidate"; exit; fi; \
	done; echo python3
PYTHON ?= $(shell $(FIND_PYTHON))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-web docs notebook soak minkowski lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  options: STACK=openmmlab|classic, PYTHON=/path/to/python3.x, ARGS='passed on to demo or pytest'"

setup: ## make or update the environment (returns at once when nothing changed)
	@python=$(PYTHON); "$$python" -c '' >/dev/null 2>&1 || { \
		echo "set-up: cannot run $$python: install Python 3.10, 3.11 or 3.12 (Debian: apt-get install python3 python3-venv python3-dev) or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" tools/setup_env.py --stack $(STACK)

demo: setup ## pre-train and fine-tune on the built-in sample data; results in work_dirs/demo/
	$(PY) tools/demo.py $(ARGS)

# A file is tested by one process, which keeps what its tests share. More processes need more memory
# than they save time.
test: setup ## run the tests; one module: make test ARGS=tests/test_engine
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

soak: setup ## try every fault many times (15 minutes on two cores); writes the table of docs/reliability.md
	$(PY) tools/soak.py $(ARGS)

# Gradio needs a newer huggingface_hub than transformers 4, a peer of the benchmark: it gets an
# environment of its own, which sees the packages of the other one behind its own.
$(WEB)/made: requirements/web.txt requirements/webtests.txt
	rm -rf $(WEB)
	$(PY) -m venv $(WEB)
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$(echo $(WEB)/lib/python3*/site-packages)/base.pth"
	$(WEB)/bin/python -m pip install -r requirements/web.txt -r requirements/webtests.txt
	touch $@

test-web: setup ## try the web demo in a real Chromium (Debian: apt-get install chromium)
	@$(MAKE) --no-print-directory $(WEB)/made
	$(WEB)/bin/python -m pytest -m web tests/test_web $(ARGS)

# The pages need no OpenMMLab: mkdocstrings reads the sources, and the notebook is stored with its output.
docs: ## build the pages as a site, strictly: site/index.html
	@test -x .venv-docs/bin/mkdocs || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

notebook: setup ## run the notebook of the docs anew (minutes)
	$(PY) -m pip install --quiet nbconvert ipykernel
	$(PY) -m jupyter nbconvert --to notebook --execute --inplace docs/notebooks/first_steps.ipynb

minkowski: setup ## compile the optional MinkowskiEngine (needs libopenblas-dev)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip install --no-build-isolation \
		--config-settings="--global-option=--cpu_only --blas=openblas" \
		"$$(grep -v '^#' requirements/minkowski.txt)"

lint: setup ## ruff, formatting, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup ## let ruff fix and format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove caches and build products; environments and work_dirs stay
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
