# Each target makes the virtual environment and installs what it needs; a second call starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs/demo

MINUTES := 9
GPU_OUT := runs/gpu$(if $(SMOKE),_smoke)
WHEELS := runs/wheels
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: help setup demo test soak lint bench gpu gpu-wheels gpu-data docs house

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(VENV)/.demo  ## make .venv with the package and the demo's data
	@echo "ready: source $(BIN)/activate; attention-vision --help"

demo: $(VENV)/.demo  ## classify digits, find them in scenes, draw new ones: about 6 minutes on 2 cores
	$(BIN)/python experiments/demo/run.py $(RUNS)

test: $(VENV)/.dev  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

soak: $(VENV)/.dev  ## hours: 10,000 examples of each fuzz test, 60 kills, memory over 20,000 steps
	FUZZ_PROFILE=soak $(BIN)/python -m pytest --numprocesses 2 tests/fuzz
	$(BIN)/python tests/soak/kills.py --kills 60
	$(BIN)/python tests/soak/memory.py --steps 20000

lint: $(VENV)/.dev  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.dev  ## measure speed and memory against the peers' libraries: tables and plot in docs
	$(BIN)/python experiments/benchmarks/all.py

gpu:  ## ask a GPU everything, within MINUTES=9; again: goes on; DATA=CIFAR-10's folder; SMOKE=1: toy, on a CPU
	$(GPU_PYTHON) experiments/gpu/run.py --minutes $(MINUTES) --out $(GPU_OUT) $(if $(SMOKE),--smoke) \
		$(if $(DATA),--data $(DATA)) $(if $(wildcard $(WHEELS)),--wheels $(WHEELS))

gpu-wheels: $(VENV)/.dev  ## download what a machine with PyTorch lacks for `make gpu`; PRESENT=its pip freeze
	$(BIN)/python experiments/gpu/wheels.py --out $(WHEELS) $(if $(PRESENT),--present $(PRESENT))

gpu-data: $(VENV)/.dev  ## pack CIFAR-10 of DATA into two files of 51 MB in runs/cifar10
	$(BIN)/python experiments/gpu/cifar.py pack $(DATA) runs/cifar10

docs: $(VENV)/.dev  ## build the guides and the API reference into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built: site/index.html"

house: $(VENV)/.dev  ## print rooms, floors, arrows and circles as the imports are, and draw them
	$(BIN)/python docs/house.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "attention_vision needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: $(BIN)/python pyproject.toml
	@echo "installing attention-vision[$*] into $(VENV): some GB the first time, a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@
