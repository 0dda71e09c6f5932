# make demo   makes a scene, trains on it, and prints the paths of mesh, video and numbers
# make test   runs the tests            make bench   times each operation against its twin
# make gpu-check   on a machine with a CUDA device: tests, operations, a step and a training in one table, under 8 minutes;
#                  installs nothing, uses PYTHON (python3)
# make lint   style and types           .venv/bin/pytest -m "not slow"   the daily loop
#
# WHEELS chooses where pip takes packages from. On Linux the default index brings the CUDA build of torch (gigabytes);
# for the CPU build: make demo WHEELS='--extra-index-url URL-OF-PYTORCH-CPU-WHEELS'

PYTHON ?= python3
WHEELS ?=
VENV := .venv
PY := $(VENV)/bin/python
DEMO := inputs/demo
RUN := outputs/demo/demo

.PHONY: venv test lint demo bench gpu-check clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements.lock
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and 'Python 3.11 to 3.13 is needed, got ' + sys.version.split()[0])"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(WHEELS) -r requirements.lock
	touch $@

test: venv
	$(PY) -m pytest

lint: venv
	$(PY) -m pip install --quiet --disable-pip-version-check $(WHEELS) "ruff>=0.14" "mypy>=1.18"
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

demo: venv
	$(PY) -m process_data.demo $(DEMO)
	rm -rf $(RUN)
	$(PY) run.py --config confs/demo.yaml --train dataset.root_dir=$(DEMO) trainer.trial_name=demo
	$(PY) -m utils.summary $(RUN)

bench: venv
	$(PY) -m tests.benchmarks.ops
	$(PY) -m tests.benchmarks.step

gpu-check:
	$(PYTHON) -m tests.benchmarks.gpu_check

clean:
	rm -rf $(VENV) .pytest_cache
