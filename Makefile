# Every target sets up what it needs by itself: Debian packages, .venv, dependencies (scripts/setup.sh).

PYTHON ?= python3
SRC ?= /usr/share
DST ?=
# Benchmarks to run, all by default, and --quick to see only that they work: make bench BENCH="mirror --quick"
BENCH ?=
# Mounts need root. Set-up and demo ask for it themselves; tests that cannot run without are skipped and say so.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
VENV := .venv/bin
# Tests and benchmarks start programs thousands of times, compiled once as on any host.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bench bench-capture soak fuzz clean

demo: .venv/.ready
	@$(AS_ROOT) $(VENV)/python scripts/demo.py --source '$(SRC)' $(if $(DST),--target '$(DST)')

test: .venv/.ready
	scripts/test.sh $(VENV)/python

lint: .venv/.ready
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

bench: .venv/.ready
	@$(AS_ROOT) $(VENV)/python scripts/bench.py $(BENCH)

bench-capture: .venv/.ready
	@$(AS_ROOT) $(VENV)/python scripts/bench.py capture $(BENCH)

soak: .venv/.ready
	$(VENV)/python -m pytest -m soak

# FUZZ_INPUTS=N in all, FUZZ="engine records": only these
FUZZ_INPUTS ?= 1000000
FUZZ ?=
fuzz: .venv/.ready
	$(VENV)/python -c 'import atheris' 2>/dev/null || $(VENV)/python -m pip install --quiet 'atheris>=2.3'
	PYTHONPATH=tests FUZZ_INPUTS=$(FUZZ_INPUTS) $(VENV)/python -m fuzz.run $(FUZZ)

clean:
	rm -rf .venv build bench/results *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml setup.py replicator/fs/_many.c scripts/setup.sh
	@PYTHON='$(PYTHON)' sh scripts/setup.sh
