# Everything runs in .venv, made here from constraints.txt; every target is safe to repeat.
PYTHON ?= python3
BIN := .venv/bin
.DELETE_ON_ERROR:
.PHONY: demo test test-all lint bench clean

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tracetool needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml constraints.txt hatch_build.py tracetool/chrome/quick.c | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/dev: pyproject.toml constraints.txt hatch_build.py tracetool/chrome/quick.c | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps traceinsight==0.6.1
	touch $@ .venv/base .venv/report

.venv/report: pyproject.toml constraints.txt hatch_build.py tracetool/chrome/quick.c | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report]'
	touch $@ .venv/base

demo: .venv/report
	$(BIN)/tracetool diff traces/train_pageable.json.gz traces/train_pinned.json.gz
	@echo
	$(BIN)/tracetool report traces/tables_before.json.gz traces/tables_after_as_written.json.gz \
	  traces/tables_after_as_meant.json.gz --name before --name 'as written' --name 'as meant' \
	  -o tracetool-demo.html --force
	@echo "block tables on an H200, before and after, as a page: $(CURDIR)/tracetool-demo.html"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m 'not slow' -n 2

test-all: lint
	$(BIN)/pytest -n 2

bench: .venv/dev
	$(BIN)/python tests/benchmarks/bench_read.py
	$(BIN)/python tests/benchmarks/bench_capture.py
	$(BIN)/python tests/benchmarks/bench_plugin.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
