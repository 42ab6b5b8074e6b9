# Two commands on a fresh machine: `make scan` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL ?= embedded
WORKERS ?= 2
# Each worker has one thread and up to 8 GB: two threads of one process wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: help setup scan app test test-fast check format docs serve-docs dist space container bench validity clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## Install everything into .venv

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[app,serve,quantization,bench,sae,docs,dev]"
	touch $@

scan: $(INSTALLED)  ## Scan the embedded model, or MODEL=...
	@$(BIN)/modelassay scan $(MODEL) || { code=$$?; test $$code -eq 1 || test $$code -eq 3 || exit $$code; }

app: $(INSTALLED)  ## Open the page on http://127.0.0.1:7860
	$(BIN)/python app.py

test: $(INSTALLED)  ## All tests, with the real model and the browser, on WORKERS=2 processes
	$(PYTEST)

test-fast: $(INSTALLED)  ## Tests on tiny models only
	$(PYTEST) -m "not real_model and not browser and not families"

check: $(INSTALLED)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)  ## Let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## Build the documentation into site/; warnings are errors
	$(BIN)/python scripts/architecture.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve-docs: $(INSTALLED)  ## Show the documentation on http://127.0.0.1:8000 while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

dist: $(INSTALLED)  ## Build wheel and sdist, and scan from the wheel in a fresh environment
	$(BIN)/python scripts/distribution.py

space: $(INSTALLED)  ## Assemble the Space in dist/space, install it alone, and scan through it
	$(BIN)/python scripts/space.py

container: $(INSTALLED)  ## Build the Docker image and scan through it; without Docker, by hand
	$(BIN)/python scripts/container.py

bench: $(INSTALLED)  ## Write the pages of times: of scan, guard and serve
	$(BIN)/python benchmarks/bench_scan.py --write docs/benchmarks.md
	$(BIN)/python benchmarks/bench_guard.py --write docs/guard-benchmarks.md
	$(BIN)/python benchmarks/bench_serve.py --write docs/serve-benchmarks.md

validity: $(INSTALLED)  ## All evidence on all organisms: docs/validity.md, docs/diff-validity.md
	$(BIN)/python benchmarks/validity.py --write docs/validity.md
	$(BIN)/python benchmarks/diff_validity.py --sae embedded --write docs/diff-validity.md --calibration calibrations/organism-safe/calibration.json

clean:  ## Remove the environment and all that was built
	rm -rf $(VENV) .pytest_cache .ruff_cache dist site
