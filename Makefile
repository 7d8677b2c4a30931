# Every target installs what it needs into .venv first. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The locks are complete: --no-deps keeps pip from resolving other versions, and `pip check` fails if one is missing.
# -I ignores PYTHONPATH, which environment modules often set on clusters.
PIP := -I -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
EDITABLE := -I -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation --editable
# Without byte code every process of the tests would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE
SEED ?= 1
RUNS ?= 1000
STUDIES ?= 4000

# The build of torch: TORCH=cpu or TORCH=cuda; by default CUDA if this machine or a node of the cluster has a GPU.
# (Nodes with a loopback address are this machine, where nvidia-smi has the answer.)
find_torch = if nvidia-smi -L 2>&1 | grep -q '^GPU '; then echo cuda; \
	elif sinfo -h -N -o '%o %G' 2>&1 | grep -v '^127\.' | grep -q ' gpu:'; then echo cuda; else echo cpu; fi
$(if $(filter-out cpu cuda,$(TORCH)),$(error TORCH must be cpu or cuda, not $(TORCH)))
INSTALLED := $(VENV)/.installed$(TORCH:%=-%)
# Fail unless these folders are virtual environments or do not exist: never remove anything else, or follow a link.
check_venv = for venv in $(1); do \
	if [ -L "$${venv%/}" ]; then echo "make: $$venv is a link, and its target would be changed;" \
	    "remove the link, or choose another folder: make VENV=FOLDER ..." >&2; exit 1; \
	elif [ -e "$$venv" ] && [ ! -f "$$venv/pyvenv.cfg" ]; then echo "make: $$venv is not a virtual environment;" \
	    "move it away, or choose another folder: make VENV=FOLDER ..." >&2; exit 1; fi; done
AUDITED := requirements-cuda.txt requirements-dev.txt requirements/tools.txt requirements/docs.txt

.PHONY: help demo test fast-test coverage trust science soak warm-cache report schema docs lint lock licenses audit wheel clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED): requirements.txt requirements-cuda.txt requirements/common.txt
	$(PYTHON) -c 'import sys; sys.exit("Ablatrix needs Python 3.11 or newer; run: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	@$(call check_venv,"$(VENV)")
	if ls $(VENV)/.installed* >/dev/null 2>&1; then clear=$(if $(TORCH),--clear); fi; $(PYTHON) -m venv $$clear $(VENV)
	rm -f $(VENV)/.installed*
	build=$(or $(TORCH),$$($(find_torch))); \
	if [ $$build = cuda ]; then lock=requirements-cuda.txt; else lock=requirements.txt; fi; \
	echo "make: installing $$lock into $(VENV)"; \
	$(BIN)/python $(PIP) --no-compile -r $$lock && $(BIN)/python -I -m pip check && touch $(VENV)/.installed-$$build
	$(BIN)/python -I -m compileall -qq -j 4 $(VENV)/lib || : # pip would use one process; files for other versions fail
	touch $(VENV)/.installed

# Install the command `ablatrix`, which runs the code of this checkout.
$(VENV)/.installed-command: $(INSTALLED) pyproject.toml
	$(BIN)/python $(EDITABLE) .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-command requirements-dev.txt
	$(BIN)/python $(PIP) --no-build-isolation --use-pep517 -r requirements-dev.txt
	$(BIN)/python -I -m pip check
	touch $@

$(VENV)-tools/.installed $(VENV)-docs/.installed: $(VENV)-%/.installed: requirements/%.txt
	@$(call check_venv,"$(@D)")
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) -r $<
	$(@D)/bin/python -I -m pip check
	touch $@

demo: $(VENV)/.installed-command ## run a small study of 7 cells and show the verdict (minutes on two cores)
	$(BIN)/ablatrix warm-cache --tokenizer sample
	$(BIN)/ablatrix submit experiments/quickstart.yaml --wait
	$(BIN)/ablatrix report out/quickstart

test: $(VENV)/.installed-dev ## run the whole test suite (Slurm tests only where a cluster answers)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

fast-test: $(VENV)/.installed-dev ## run the fast tests; after every change
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not slurm' -n 2 $(PYTEST_ARGS)

coverage: $(VENV)/.installed-dev ## run the whole test suite and show what no test takes; fails below 90%
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cov --cov-fail-under=90 -n 2 $(PYTEST_ARGS)

trust: $(VENV)/.installed-dev ## run every case behind docs/guarantees.md and list them in a table; SEED=n draws others
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m trust -n 2 --dist loadgroup --full --seed $(SEED) $(PYTEST_ARGS)

science: $(VENV)/.installed-dev ## error rates, coverage and power of the verdicts in STUDIES=4000 simulated studies each
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.simulated_studies $(STUDIES)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.simulated_looks $$(($(STUDIES) / 4))
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.simulated_tuning $(STUDIES)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.simulated_scales $(STUDIES)

soak: $(VENV)/.installed-dev ## as root, overnight: RUNS=1000 runs through a real Slurm with a fault every 10 s; SEED=n
	tests/slurm/cluster install
	tests/slurm/cluster up
	code=0; OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/trust/test_soak.py --soak $(RUNS) --seed $(SEED) \
	  $(PYTEST_ARGS) || code=$$?; tests/slurm/cluster down --purge; exit $$code

warm-cache: $(VENV)/.installed-command ## fill the offline cache, on the login node; ARGS="--from DIR"
	$(BIN)/ablatrix warm-cache $(ARGS)

report: $(VENV)/.installed-command ## write the report of the latest study
	$(BIN)/ablatrix report

docs: $(VENV)-docs/.installed ## build the documentation as a site in site/; fails for a broken link
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet --config-file tools/mkdocs.yml

schema: $(VENV)/.installed-command ## write experiments/schema.json, after a change of settings
	$(BIN)/ablatrix schema --output experiments/schema.json

lint: $(VENV)/.installed-dev ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)-tools/.installed ## write requirements*.txt from pyproject.toml; ARGS=--upgrade takes newer versions
	PATH="$(CURDIR)/$(VENV)-tools/bin:$$PATH" python -m tools.lock $(ARGS)

licenses: $(VENV)/.installed-dev $(VENV)-tools/.installed ## write docs/licenses.md from the locks, after make lock
	$(BIN)/python -m tools.licenses $(VENV)-tools/bin/python

audit: $(VENV)-tools/.installed ## check the locked packages for known vulnerabilities (needs a network); ARGS="-s osv"
	$(VENV)-tools/bin/pip-audit --strict --disable-pip --require-hashes $(AUDITED:%=-r %) $(ARGS)

wheel: $(VENV)/.installed-dev ## build a reproducible wheel of this commit in dist/
	umask 022; source=$$(mktemp -d) && git -c tar.umask=022 archive HEAD | tar -x -C $$source && \
	  SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -I -m pip wheel --quiet --disable-pip-version-check \
	  --no-deps --no-index --no-build-isolation --wheel-dir dist $$source; code=$$?; rm -rf "$$source"; exit $$code
	sha256sum dist/*.whl

clean: ## remove the virtual environments
	@$(call check_venv,"$(VENV)" "$(VENV)-tools" "$(VENV)-docs")
	rm -rf "$(VENV)" "$(VENV)-tools" "$(VENV)-docs"
