# Every target sets up .venv first where that is needed. PYTHON chooses the interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-slow test-gpu test-all check docs bench clean

demo: $(VENV)/ready  ## the main job on drawn scenes of trash: demo/campaign/submission.csv and report.html
	rm -rf demo/campaign
	$(BIN)/foldfuse demo

test: $(VENV)/ready  ## the fast tests, one process a core
	$(PYTEST) -n auto --maxprocesses 8 -m "not slow"

test-slow: $(VENV)/ready  ## kills, clusters and whole campaigns, in one process: they measure time
	$(PYTEST) -m slow

test-gpu: $(VENV)/ready  ## the tests that need a CUDA card; without one they are skipped
	$(PYTEST) -m gpu -rs

test-all: test test-slow  ## all tests

check: $(VENV)/ready  ## style and types
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy

docs: $(VENV)/ready  ## the docs site in site/; a broken link ends the build
	$(BIN)/python docs/build_site.py

bench: $(VENV)/ready  ## the claims of speed, measured beside the rivals (benchmarks/campaign.py takes hours: by hand)
	for script in benchmarks/fusion.py benchmarks/ensemble.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) demo site .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
