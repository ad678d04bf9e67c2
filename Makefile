# make install | demo | test, each works from a fresh clone; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra words for pip, for example a CPU-only wheel index for torch (README, "Installing").
PIP_ARGS ?=
STAMP := $(VENV)/.installed

.PHONY: install demo test pytest lint style imports types clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "expected Python 3.11, 3.12 or 3.13, found %d.%d: run make PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable ".[dev,postgres]"
	@touch $@

demo: $(STAMP)
	$(BIN)/dipro-fed demo --out demo

lint: types style imports

style: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

imports: $(STAMP)
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/basedpyright

# One thread of torch in one process more than there are cores: most tests are too small for more threads, and some wait.
# The files are taken in the order of tests/conftest.py, not by their number of tests, which says nothing of their time.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() + 1))')
test: lint pytest

pytest: $(STAMP)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
		--no-loadscope-reorder

clean:
	rm -rf $(VENV) build demo
