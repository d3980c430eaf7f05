# The two commands of the README, and what a developer and CI run.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OUT    ?= results

.PHONY: run test check format slow speed clean

run: $(VENV)/.installed  ## the sweep simclr_gamma on built-in data, then its leaderboard
	$(BIN)/bench run --sweep simclr_gamma --out $(OUT)
	$(BIN)/bench report --out $(OUT)

test: $(VENV)/.test-installed  ## the fast tests
	$(BIN)/python -m pytest

slow: $(VENV)/.test-installed  ## the slow tests too
	$(BIN)/python -m pytest -m "not gpu"

speed: $(VENV)/.test-installed  ## measure beside other libraries; writes docs/PERFORMANCE.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,speed]"
	$(BIN)/python -m tests.speed

check: $(VENV)/.test-installed  ## lint, format and types, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@
