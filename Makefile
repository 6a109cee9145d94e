# `make demo` and `make test` need python3 >= 3.10 with venv, and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
DEMO := $(VENV)/.demo
DEV := $(VENV)/.dev
PACKAGE := setup.py settings.ini pyproject.toml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-notebooks test-pytest notebooks export clean-check docs preview readme benchmarks clean

help:
	@echo 'make demo         run both tutorials in two live Jupyter kernels, and check what they print'
	@echo 'make test         nbdev_test over all notebooks, then pytest'
	@echo 'make notebooks    execute all notebooks and store their outputs'
	@echo 'make export       notebooks -> parkit/, and clean the notebooks'
	@echo 'make clean-check  the same, failing if that changes a committed file'
	@echo 'make docs         the documentation site -> _docs/, and README.md and CONTRIBUTING.md'
	@echo 'make preview      serve the site on this machine, and rebuild it when something changes'
	@echo 'make readme       nbs/index.ipynb -> README.md, nbs/contributing.ipynb -> CONTRIBUTING.md'
	@echo 'make benchmarks   measure parkit beside its peers'
	@echo 'make clean        remove .venv and everything else that is made'

demo: $(DEMO)
	@$(BIN)/python tools/demo.py

test: test-notebooks
	@$(MAKE) --no-print-directory test-pytest

test-notebooks: $(DEV)
	$(BIN)/python tools/notebooks.py test

test-pytest: $(DEV)
	$(BIN)/python -m pytest tests -n 4 --dist loadfile --no-loadscope-reorder

notebooks: $(DEV)
	$(BIN)/python tools/notebooks.py save

export: $(DEV)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

clean-check: $(DEV)
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	@if [ -n "$$(git status --porcelain)" ]; then git --no-pager diff; git status --short; \
	  echo 'nbdev_clean and nbdev_export change these files: run `make export` and commit the result.' >&2; exit 1; fi

docs: $(DEV)
	$(BIN)/python tools/docs.py

preview: $(DEV)
	$(BIN)/python tools/docs.py --preview

readme: $(DEV)
	$(BIN)/python tools/readme.py

benchmarks: $(DEV)
	$(BIN)/python benchmarks/speed.py --json benchmarks/results.json

clean:
	rm -rf $(VENV) build dist *.egg-info _proc _docs nbs/sidebar.yml .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@command -v $(PYTHON) >/dev/null || { echo 'parkit needs Python 3.10 or newer, and there is no $(PYTHON) here:' \
	  'install it, or say which to use, as in `make PYTHON=python3.12 demo`.' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "parkit needs Python 3.10 or newer;" \
	  "$(PYTHON) is $$($(PYTHON) --version 2>&1). Say which to use, as in \`make PYTHON=python3.12 demo\`." >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'No virtual environment could be made;' \
	  'on Debian and Ubuntu, `apt install python3-venv` brings what is missing.' >&2; exit 1; }
	@touch $@

$(DEMO): $(MADE) $(PACKAGE)
	@echo 'installing parkit and what the demo needs into $(VENV)'
	@$(PIP) -e '.[demo]'
	@touch $@

$(DEV): $(MADE) $(PACKAGE)
	@echo 'installing parkit and the development tools into $(VENV)'
	@$(PIP) -e '.[dev]'
	@touch $@ $(DEMO)
