# `make demo` and `make test` are all a fresh machine with python3 (3.11 or newer) and make needs.
# .venv is set up once and again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test suite style types test-sanitizers test-aarch64 test-compilers test-install test-oldest test-portability test-integrations study-quick lint bench docs clean

help:
	@echo "make demo   two forecasters of CO2, and how far back their gradients reach"
	@echo "make test   lint, types and all tests"
	@echo "make lint   ruff and mypy"
	@echo "make test-sanitizers  the compiled backend under the address and undefined-behaviour sanitizers"
	@echo "make test-aarch64  the compiled backend as a 64-bit ARM processor runs it, in an emulator"
	@echo "make test-compilers  the compiled backend as each compiler at hand builds it, at each level of optimisation"
	@echo "make test-install  the wheel in an environment of its own: core dependencies, then [cli]"
	@echo "make test-oldest   the tests of the core with the oldest versions allowed (downloads 3 GB)"
	@echo "make test-portability  pages, numerics and demo under other instruction sets (SETTINGS='plain avx2-2')"
	@echo "make test-integrations  packages that train recurrent layers, as they are (installs a lot)"
	@echo "make study-quick  the ends of the ladder: an RNN at lags 10 and 100, an LSTM at 100 and 1000"
	@echo "make bench  speed and memory, as ratios measured here"
	@echo "make docs   the documentation, into site/"

demo: .venv/demo
	$(BIN)/retrograde demo

# Types are checked beside the tests, which would wait half a minute for them in a fresh clone.
test: style
	@$(MAKE) --no-print-directory --jobs 2 types suite

# The tests start some thirty processes: modules are compiled once, whatever the environment says.
suite: .venv/dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal

# Optimised less than the library is, which would take the sanitizers ten times as long to build.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
test-sanitizers: .venv/dev
	rm -rf build/sanitized
	CFLAGS="-O1 -g $(SANITIZE)" LDFLAGS="$(SANITIZE)" $(PIP) --no-deps --target build/sanitized .
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1073741824 PYTHONPATH=build/sanitized RETROGRADE_BACKEND=compiled \
	$(BIN)/python -m pytest -q tests/compiled

test-aarch64: .venv/dev
	$(BIN)/python scripts/aarch64.py

test-compilers: .venv/dev
	$(BIN)/python scripts/compilers.py

test-install: .venv/created
	$(BIN)/python scripts/installation.py core

test-oldest: .venv/created
	$(BIN)/python scripts/installation.py oldest

test-portability: .venv/dev
	$(BIN)/python scripts/portability.py $(SETTINGS)

# Without the type checks of `make test`, as users run these packages: each training is two hundred
# recorded passes, and the checks cost several times what recording does.
test-integrations: .venv/integrations
	$(BIN)/python -m pytest -q --override-ini addopts=--strict-markers tests/other_packages

# Forty trainings and a few minutes; what was shipped says the same of these rows.
study-quick: .venv/dev
	$(BIN)/retrograde study ladder --row rnn-10 --row rnn-100 --row lstm-1997-bias-100 \
	--row lstm-1997-bias-1000 --processes 2 --threads 1 --out study-quick.json

lint: style types

style: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python benchmarks/norms_against_autograd.py
	$(BIN)/python benchmarks/recursion_against_matmul.py
	$(BIN)/python benchmarks/routes_against_lags.py
	$(BIN)/python benchmarks/horizon_cost.py
	$(BIN)/python benchmarks/planted_lags.py
	$(BIN)/python benchmarks/unitwise_lags.py --steps 30000
	$(BIN)/python benchmarks/decompose_cost.py
	$(BIN)/python benchmarks/interval_coverage.py
	$(BIN)/python benchmarks/training_against_torch.py
	$(BIN)/python benchmarks/memory_and_length.py
	$(BIN)/python benchmarks/monitor_cost.py
	$(BIN)/python benchmarks/diagnosis_cost.py
	$(BIN)/python benchmarks/clipping_cost.py
	$(BIN)/python benchmarks/spectra_cost.py
	$(BIN)/python benchmarks/explorer_cost.py
	$(BIN)/python benchmarks/reber_whole_gradient.py
	$(BIN)/python benchmarks/flat_outputs.py

docs: .venv/dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees --builder html docs site

clean:
	rm -rf .venv site

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "retrograde needs Python 3.11 or newer; make PYTHON=python3.11 picks one")'
	$(PYTHON) -m venv .venv
	@touch $@

# torch first and on its own: pinned like this it is the CPU build where one is at hand.
.venv/torch: .venv/created constraints.txt
	@echo "installing torch (once) ..."
	$(PIP) torch
	@touch $@

.venv/demo: .venv/torch pyproject.toml setup.py $(wildcard csrc/*)
	@echo "installing what the demo needs (once) ..."
	$(PIP) --editable '.[demo]'
	@touch $@

# The package is there: by its name alone only what is missing comes, and it is not built once more.
.venv/dev: .venv/demo
	@echo "installing what the tests need (once) ..."
	$(PIP) 'retrograde[dev]'
	@touch $@

.venv/integrations: .venv/dev
	@echo "installing what the integration tests need (once) ..."
	$(PIP) 'retrograde[integrations]'
	@touch $@
