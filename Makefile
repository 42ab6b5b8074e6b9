# Two commands on a fresh machine: `make scan` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL ?= embedded

.PHONY: setup scan app test check format bench validity clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[app,quantization,bench,sae,dev]"
	touch $@

scan: $(INSTALLED)  ## Scan the embedded model, or MODEL=...
	@$(BIN)/modelassay scan $(MODEL) || { code=$$?; test $$code -eq 1 || test $$code -eq 3 || exit $$code; }

app: $(INSTALLED)  ## Open the page on http://127.0.0.1:7860
	$(BIN)/python app.py

test: $(INSTALLED)  ## All tests, the real model's and the browser's included
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## Writes docs/benchmarks.md and docs/guard-benchmarks.md
	$(BIN)/python benchmarks/bench_scan.py --write docs/benchmarks.md
	$(BIN)/python benchmarks/bench_guard.py --write docs/guard-benchmarks.md

validity: $(INSTALLED)  ## Every stream of evidence on every organism; writes docs/validity.md, docs/diff-validity.md
	$(BIN)/python benchmarks/validity.py --write docs/validity.md
	$(BIN)/python benchmarks/diff_validity.py --sae embedded --write docs/diff-validity.md --calibration calibrations/organism-safe.json

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
