# The commands of the README. Everything is installed into .venv by the first of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The locks are complete: with --no-deps no resolver looks for other versions, `pip check` tells if one were missing.
# -I: packages on PYTHONPATH, as modules of clusters set it, are not part of it.
PIP := -I -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
EDITABLE := -I -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation --editable
SEED ?= 1
RUNS ?= 1000

# The build of torch: TORCH=cpu or TORCH=cuda; without it, what this machine or the cluster's nodes are good for.
# (Nodes at a loopback address are this machine, whose nvidia-smi has answered already.)
find_torch = if nvidia-smi -L 2>&1 | grep -q '^GPU '; then echo cuda; \
	elif sinfo -h -N -o '%o %G' 2>&1 | grep -v '^127\.' | grep -q ' gpu:'; then echo cuda; else echo cpu; fi
$(if $(filter-out cpu cuda,$(TORCH)),$(error TORCH is cpu or cuda, not $(TORCH)))
INSTALLED := $(VENV)/.installed$(TORCH:%=-%)
# Nothing is removed but a virtual environment, and none behind a link.
check_venv = for venv in $(1); do \
	if [ -L "$${venv%/}" ]; then echo "make: $$venv is a link, and what is behind it would be changed;" \
	    "remove the link, or choose the folder by: make VENV=FOLDER ..." >&2; exit 1; \
	elif [ -e "$$venv" ] && [ ! -f "$$venv/pyvenv.cfg" ]; then echo "make: $$venv is not a virtual environment;" \
	    "move it away, or choose another folder by: make VENV=FOLDER ..." >&2; exit 1; fi; done
AUDITED := requirements-cuda.txt requirements-dev.txt requirements/tools.txt

.PHONY: help demo test fast-test trust soak warm-cache report schema lint lock licenses audit wheel clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED): requirements.txt requirements-cuda.txt requirements/common.txt
	$(PYTHON) -c 'import sys; sys.exit("Ablatrix needs Python 3.11 or newer; call: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	@$(call check_venv,"$(VENV)")
	if ls $(VENV)/.installed* >/dev/null 2>&1; then clear=$(if $(TORCH),--clear); fi; $(PYTHON) -m venv $$clear $(VENV)
	rm -f $(VENV)/.installed*
	build=$(or $(TORCH),$$($(find_torch))); \
	if [ $$build = cuda ]; then lock=requirements-cuda.txt; else lock=requirements.txt; fi; \
	echo "make: installing $$lock into $(VENV)"; \
	$(BIN)/python $(PIP) -r $$lock && $(BIN)/python -I -m pip check && touch $(VENV)/.installed-$$build
	touch $(VENV)/.installed

# The command `ablatrix`, which runs this checkout's code
$(VENV)/.installed-command: $(INSTALLED) pyproject.toml
	$(BIN)/python $(EDITABLE) .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-command requirements-dev.txt
	$(BIN)/python $(PIP) --no-build-isolation --use-pep517 -r requirements-dev.txt
	$(BIN)/python -I -m pip check
	touch $@

$(VENV)-tools/.installed: requirements/tools.txt
	@$(call check_venv,"$(VENV)-tools")
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/bin/python $(PIP) -r requirements/tools.txt
	$(VENV)-tools/bin/python -I -m pip check
	touch $@

demo: $(VENV)/.installed-command ## the 7-cell study in miniature, from nothing to the verdict (minutes on two cores)
	$(BIN)/ablatrix warm-cache --tokenizer sample
	$(BIN)/ablatrix submit experiments/quickstart.yaml --wait
	$(BIN)/ablatrix report out/quickstart

test: $(VENV)/.installed-dev ## the whole test suite (the Slurm tests run where a cluster answers)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

fast-test: $(VENV)/.installed-dev ## what a developer runs after every change
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not slurm' -n 2 $(PYTEST_ARGS)

trust: $(VENV)/.installed-dev ## every case behind docs/guarantees.md and one table of them; SEED=n for other ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/trust tests/faults -n 2 --dist loadgroup \
		--full --seed $(SEED) $(PYTEST_ARGS)

soak: $(VENV)/.installed-dev ## nightly, as root: RUNS=1000 runs through a Slurm of its own, a fault every 10 s; SEED=n
	tests/slurm/cluster install
	tests/slurm/cluster up
	code=0; OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/trust/test_soak.py --soak $(RUNS) --seed $(SEED) \
	  $(PYTEST_ARGS) || code=$$?; tests/slurm/cluster down --purge; exit $$code

warm-cache: $(VENV)/.installed-command ## on the login node: tokenizer (and data) into the offline cache; ARGS="--from DIR"
	$(BIN)/ablatrix warm-cache $(ARGS)

report: $(VENV)/.installed-command ## the report of the study submitted last
	$(BIN)/ablatrix report

schema: $(VENV)/.installed-command ## experiments/schema.json, for editors; after settings were added or changed
	$(BIN)/ablatrix schema --output experiments/schema.json

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)-tools/.installed ## all requirements*.txt from pyproject.toml; ARGS=--upgrade for newer versions
	PATH="$(CURDIR)/$(VENV)-tools/bin:$$PATH" python -m tools.lock $(ARGS)

licenses: $(VENV)/.installed-dev $(VENV)-tools/.installed ## docs/licenses.md, from the locks; after make lock
	$(BIN)/python -m tools.licenses $(VENV)-tools/bin/python

audit: $(VENV)-tools/.installed ## known vulnerabilities of what is locked; needs a network; ARGS="--vulnerability-service osv"
	$(VENV)-tools/bin/pip-audit --strict --disable-pip --require-hashes $(AUDITED:%=-r %) $(ARGS)

wheel: $(VENV)/.installed-dev ## dist/: the package from the files of this commit, the same bytes from everybody
	$(BIN)/python -m tools.wheel

clean: ## remove the virtual environments
	@$(call check_venv,"$(VENV)" "$(VENV)-tools")
	rm -rf "$(VENV)" "$(VENV)-tools"
