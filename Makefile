# make demo: everything once, with the embedded gallery.   make test: the tests.   CI runs: make check test test-clusters test-light
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# number of test processes; each runs whole files, in the order of tests/conftest.py: the slow ones first. With more than
# 12 GB of memory, a third process works while the two others wait
TEST_PROCESSES ?= $(shell awk '$$1 == "MemTotal:" && $$2 > 12000000 { more = 1 } END { print more ? 3 : 2 }' /proc/meminfo 2>/dev/null || echo 2)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# otherwise each of the hundreds of processes that tests start would compile the package again
unexport PYTHONDONTWRITEBYTECODE
# threads of OpenMP sleep while they wait, as in our commands, because the test processes share the cores
test test-fast test-clusters: export OMP_WAIT_POLICY := passive

.PHONY: help setup demo serve fix check test test-fast test-clusters test-light front front-check front-test bench docs cli-docs screenshots clean

help:
	@echo "make demo   embed, index and query the embedded gallery (installs into $(VENV) first)"
	@echo "make serve  serve the demo's index at http://127.0.0.1:1234"
	@echo "make test   run the tests            make check  format, lint, types"
	@echo "make test-clusters  run the tests that start Slurm, Ray, Spark and databases on this machine"
	@echo "make test-light   install clip-retrieval-light into a fresh environment, and try it"
	@echo "make fix    format and autofix       make bench  benchmarks of the pipeline"
	@echo "make front  build the web pages (front/) into the package; needs node 20.19 or later"
	@echo "make docs   write docs/cli.md and the docs site into site/, its links checked"
	@echo "make cli-docs     write docs/cli.md alone"
	@echo "make screenshots  take the pictures of the pages in docs/pictures/ again, with Chromium"
	@echo "make clean  remove $(VENV) and caches"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing clip-retrieval and its dependencies into $(VENV); torch is large, so this takes minutes"
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	@rm -rf demo-run
	@$(BIN)/clip-retrieval demo demo-run

$(VENV)/.installed-serve: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --editable '.[serve]'
	@touch $@

serve: $(VENV)/.installed-serve
	@test -f demo-run/index/manifest.json || $(BIN)/clip-retrieval demo demo-run
	@$(BIN)/clip-retrieval back demo-run/index

fix: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m 'not clusters'

$(VENV)/.installed-clusters: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[clusters-dev]'
	@touch $@

# one process, because each of these engines uses both cores. Compiling UMAP takes half a minute, so it is tested here too
test-clusters: $(VENV)/.installed-clusters
	$(BIN)/python -m pytest -m clusters --reruns 1 tests/clusters tests/map

test-fast: setup
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m 'not slow and not clusters'

front/node_modules/.package-lock.json: front/package-lock.json
	cd front && npm ci --no-audit --no-fund
	@touch $@

front: front/node_modules/.package-lock.json
	cd front && npm run build

front-test: front/node_modules/.package-lock.json
	cd front && npm test

# types and unit tests of the pages; `make test` then builds them again and compares
front-check:
	@if ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null; then \
	    echo "front/ is not checked: node 20.19 or later is not installed"; \
	elif [ ! -e front/node_modules ] && ! npm view svelte version >/dev/null 2>&1; then \
	    echo "front/ is not checked: no npm registry can be reached"; \
	else $(MAKE) front/node_modules/.package-lock.json && cd front && npm run check && npm test; fi

# not part of `make test`, because it downloads what it installs
test-light: setup
	$(BIN)/python -m pytest packaging/light/tests -rP

bench: setup
	$(BIN)/python benchmarks/pipeline.py tars

cli-docs: setup
	$(BIN)/python docs/write_cli.py

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# the docs site, in site/; fails on a dead link or anchor
docs: cli-docs $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# pictures of the pages, with the demo's index; needs Chromium, and UMAP for the map
screenshots: setup
	$(BIN)/python -m pip install --quiet --editable '.[map,serve]'
	$(BIN)/python docs/screenshots.py demo-run

clean:
	rm -rf $(VENV) demo-run .pytest_cache .mypy_cache .ruff_cache *.egg-info build dist site
