# make demo      a complete run on digits, with a report
# make test      all tests            make check   formatter, linter, types, import contract, doctests, examples, docs
# make test-slow bench docs venv clean
#
# PYTHON=python3.12        the interpreter that .venv is made from (3.11 or newer)
# TORCH_INDEX=URL          where torch comes from, e.g. https://download.pytorch.org/whl/cpu
# ARGS="tests/test_x.py"   more arguments for pytest
# JOBS=4                   tests that run side by side

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
JOBS ?= 2

PY = $(VENV)/bin/python
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
LOCKED = $(PIP) --constraint constraints.txt
MADE_FROM = pyproject.toml constraints.txt oracles.txt
# One thread a process: the tests share the cores, and sums have one order.
ONE_THREAD = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: venv demo test test-slow check bench docs clean

# Stamps: a repeat installs nothing unless one of these files has changed.
venv: $(VENV)/.installed

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "infuser needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(MADE_FROM)
	$(LOCKED) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(LOCKED) --editable '.[dev,hf,ray]'
	$(LOCKED) --no-deps --requirement oracles.txt
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(LOCKED) --editable '.[bench]'
	$(LOCKED) --no-deps bergson # its metadata asks for torchvision, which it does not import
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(LOCKED) --editable '.[docs]'
	@touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/infuser run digits --out runs/digits --overwrite

# A worker that is lost ends the tests: with loadfile, pytest-xdist 3.8 waits for ever after it has replaced one. Ray ends
# the process that drives it when its own daemons fail, so it has a process of its own, and nothing beside it.
test: $(VENV)/.installed-dev
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 $(ARGS)
	$(if $(ARGS),,$(ONE_THREAD) $(PY) -m pytest -m ray)

test-slow: $(VENV)/.installed-dev
	$(ONE_THREAD) $(PY) -m pytest -m slow $(ARGS)

check: $(VENV)/.installed-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy --strict src
	$(VENV)/bin/lint-imports
	$(ONE_THREAD) $(PY) -m pytest --quiet --doctest-modules src/infuser
	@set -e; python="$$PWD/$(PY)"; out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	for example in examples/*.py; do \
		test -e "$$example" || continue; \
		echo "$$example"; example="$$PWD/$$example"; \
		(cd "$$out" && $(ONE_THREAD) "$$python" "$$example") || { echo "failed: $$example" >&2; exit 1; }; \
	done
	$(MAKE) docs

bench: $(VENV)/.installed-bench
	@set -e; for bench in benchmarks/*.py; do \
		test -e "$$bench" || continue; \
		echo "$$bench"; $(PY) "$$bench"; \
	done

docs: $(VENV)/.installed-docs
	$(ONE_THREAD) $(PY) -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist docs/_build docs/gallery docs/api .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
