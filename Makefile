# make run      set up on first use, then open the app on 127.0.0.1
# make install  the set-up alone
# make test     install what the tests need, then run all of them
# make lint     check style and formatting
# make bench    install what the measurements need, then print the table of docs/performance.md
#
# PYTHON=python3.12 picks the interpreter of a new .venv, PORT=8600 the port of the app,
# ARGS="-k cli" narrows the tests, ARGS="whatif --json" the measurements, UV= installs with pip although uv is there.

VENV  := .venv
BIN   := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
UV    ?= $(shell command -v uv 2>/dev/null)
PIP   := $(if $(UV),$(UV) pip install --compile-bytecode --python $(BIN)/python,$(BIN)/python -m pip install)

.PHONY: run install test lint bench

run: install
	$(BIN)/streamlit run app.py $(if $(PORT),--server.port $(PORT))

install: $(VENV)/.installed

test: $(VENV)/.browser
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench $(ARGS)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Prunescope needs Python 3.11 or newer; none was found. PYTHON=... names one." >&2; exit 1; }
	$(if $(UV),$(UV) venv --allow-existing --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

# The stamps say which requirements are in; a newer requirements file installs again.
$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(PIP) -r requirements-test.txt
	@touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed
	$(PIP) -r requirements-bench.txt
	@touch $@

$(VENV)/.browser: $(VENV)/.installed-test tools/chromium.py
	$(BIN)/python -m tools.chromium
	@touch $@
