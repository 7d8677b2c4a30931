# The commands of the README. Everything is installed into .venv by the first of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 1

.PHONY: help demo test fast-test trust warm-cache report schema lint clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Ablatrix needs Python 3.11 or newer; call: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/.installed ## the 7-cell study in miniature, from nothing to the verdict (minutes on two cores)
	$(BIN)/python cache_warm.py --tokenizer sample
	$(BIN)/python -m orchestrator submit experiments/quickstart.yaml --wait
	$(BIN)/python -m orchestrator report out/quickstart

test: $(VENV)/.installed-dev ## the whole test suite (the Slurm tests run where a cluster answers)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

fast-test: $(VENV)/.installed-dev ## what a developer runs after every change
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not slurm' -n 2 $(PYTEST_ARGS)

trust: $(VENV)/.installed-dev ## every case behind docs/guarantees.md and one table of them; SEED=n for other ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/trust tests/faults --full --seed $(SEED) $(PYTEST_ARGS)

warm-cache: $(VENV)/.installed ## on the login node: tokenizer (and data) into the offline cache; ARGS="--from DIR"
	$(BIN)/python cache_warm.py $(ARGS)

report: $(VENV)/.installed ## the report of the study submitted last
	$(BIN)/python -m orchestrator report

schema: $(VENV)/.installed ## experiments/schema.json, for editors; after settings were added or changed
	$(BIN)/python -m orchestrator schema --output experiments/schema.json

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the virtual environment
	rm -rf $(VENV)
