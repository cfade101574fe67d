# make setup | demo | test | test-slow | lint | docs | clean
#
# Only Python 3.11 or newer and pip are needed. The first call makes .venv and installs Suture and
# its tools into it; it is installed again when pyproject.toml or constraints.txt change.
# Another interpreter: make PYTHON=/path/to/python3.12 setup

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   ?= demo
PYTEST ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint docs clean

help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# The first interpreter that is new enough; 3.11 is the one constraints.txt was tested with.
$(BIN)/python:
	@python=""; \
	for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Suture needs Python 3.11 or newer with venv; give one: make PYTHON=... setup" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/suture demo -o $(DEMO)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis site dist build
