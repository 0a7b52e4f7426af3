# Two commands matter: `make reproduce` and `make test`. Both create .venv when it is missing.
VENV ?= .venv
PROFILE ?= $(or $(PAPERLIB_PROFILE),demo)
# The first of the Pythons this kit is tested on that this machine has.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v) >/dev/null 2>&1 && python$(v) -c '' 2>/dev/null && echo python$(v))) python3)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
comma := ,

.PHONY: help install reproduce test lab lint
.DEFAULT_GOAL := help

help:
	@echo "make reproduce   run 01 to 07 headlessly (PROFILE=smoke|demo|benchmark|paper; default demo), print the tables"
	@echo "make install     only the installation, into $(VENV)"
	@echo "make test        unit and integration tests, then nbval on the notebooks"
	@echo "make lab         open the notebooks in JupyterLab (PROFILE=…; default demo)"
	@echo "make lint        ruff on code, nbstripout on notebooks"
	@echo "ARGS='…' adds options to reproduce, for instance ARGS='--until 05 --set stage3.steps=100'"

# Only an NVIDIA driver needs torch with 4 GB of CUDA libraries; elsewhere its CPU build is asked for first.
TORCH := $(shell sed -n 's/^ *"\(torch\(vision\)\{0,1\}==[0-9.]*\)",/\1/p' pyproject.toml)
TORCH_CPU := https://download.pytorch.org/whl/cpu
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed, found %d.%d; set PYTHON=/path/to/python3.11" % v)'
	@echo "Installing into $(VENV): some minutes, 3.4 GB of disk, or 8 GB with CUDA. Only the first call does this."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@command -v nvidia-smi >/dev/null || $(PIP) --retries 0 --timeout 15 --index-url $(TORCH_CPU) $(TORCH) 2>/dev/null \
		|| echo "torch's CPU build cannot be had from $(TORCH_CPU): installing the ordinary one, with CUDA libraries"
	@$(PIP) --editable '.[kit,dev,npu]'
	@mkdir -p $(VENV)/share/jupyter/lab/settings
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}' > $(VENV)/share/jupyter/lab/settings/overrides.json
	@touch $(STAMP)

install: $(STAMP)

reproduce: $(STAMP)
	$(BIN)/paperlib reproduce --profile $(PROFILE) $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile
	PAPERLIB_PROFILE=smoke $(BIN)/python -m pytest --nbval-lax --nbval-current-env -p no:cacheprovider notebooks

# Before the first run of one's own, a copy of the committed one, whose pictures are there at once.
COMMITTED := results/reference/$(PROFILE)
SHOWN := results/committed/$(PROFILE)
SEEN = $(if $(wildcard results/$(PROFILE)),,$(wildcard $(COMMITTED)/notebooks/01_data.ipynb))
lab: $(STAMP)
	@echo "$(if $(SEEN),A copy of the committed run; notebooks/ has them without results$(comma) to run them yourself.)"
	$(if $(SEEN),@test -d $(SHOWN) && test ! $(COMMITTED)/summary.md -nt $(SHOWN)/summary.md || { rm -rf $(SHOWN) && mkdir -p $(dir $(SHOWN)) && cp -r $(COMMITTED) $(SHOWN); })
	PAPERLIB_PROFILE=$(PROFILE) $(BIN)/jupyter lab --ServerApp.root_dir="$$PWD" --LabApp.default_url=/lab/tree/$(if $(SEEN),$(SHOWN)/)notebooks/01_data.ipynb

lint: $(STAMP)
	$(BIN)/ruff check paperlib tests notebooks
	$(BIN)/nbstripout --verify --keep-count --keep-id notebooks/*.ipynb
