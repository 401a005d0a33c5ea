# `make train` and `make test` set up what they need in .venv; `make help` lists all targets.
PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= configs/fashion_mnist.yaml
DATA   ?= data
BIN    := $(VENV)/bin
LLGAE  := $(BIN)/llgae
# From the disk or by download, else from Debian's package; the last command then prints what is wrong.
FETCH  := $(LLGAE) data fashion-mnist --data-dir $(DATA) || \
	{ apt-get update --quiet && apt-get install --quiet --yes dataset-fashion-mnist; $(LLGAE) data fashion-mnist --data-dir $(DATA); }

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
# The environments in which `make modes` runs the numeric tests, one after the other; each sets several things at once.
MODES  := \
	'ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE LLGAE_TEST_VNNI=0' \
	'ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 LLGAE_TEST_VNNI=0' \
	'LLGAE_TEST_VNNI=1 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive'
PLACE  := LC_ALL=C COLUMNS=20 TZ=Pacific/Kiritimati

.DEFAULT_GOAL := help
.PHONY: help train test quick modes install schema lint audit data eval sweep report bench smoke soak browser clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

train: data ## environment, data, then the default run: a checkpoint and its mean L2
	$(LLGAE) train --config $(CONFIG)

test: install ## environment and data if missing, then every test
	-$(FETCH)
	OMP_NUM_THREADS=1 $(PYTEST)

quick: install ## the tests not marked `slow`: under two minutes
	OMP_NUM_THREADS=1 $(PYTEST) -m 'not slow'

modes: install ## numeric tests with other instruction sets and threads, quick tests in another locale
	@failed=0; for mode in $(MODES); do \
		echo "== $$mode"; \
		env OMP_NUM_THREADS=1 $$mode $(PYTEST) -m 'numeric and not slow' || failed=1; \
	done; \
	echo "== $(PLACE)"; \
	env OMP_NUM_THREADS=1 $(PLACE) $(PYTEST) -m 'not slow' || failed=1; \
	exit $$failed

install: $(VENV)/installed ## the environment .venv with all extras and what the tests need, in the tested versions

# What the commands need. `installed` adds the extras, which a first training need not wait for.
$(VENV)/runs: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, e.g. make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): torch and what it needs, some minutes and gigabytes'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed: $(VENV)/runs
	@echo 'installing into $(VENV): all extras, for the tests'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

schema: install ## the JSON schemas that editors check configs with
	schema=$$($(LLGAE) config --schema) && printf '%s\n' "$$schema" > configs/config.schema.json
	schema=$$($(LLGAE) config --sweep-schema) && printf '%s\n' "$$schema" > configs/sweeps/sweep.schema.json

lint: install ## style, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: install ## pins, then known vulnerabilities of the pinned packages; fails without access to advisories
	$(BIN)/pip check
	$(BIN)/python -m pytest tests/test_supply_chain.py
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3' || { echo 'audit: pip-audit cannot be installed from here, so no advisory was looked up' >&2; exit 1; }
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt || { echo 'audit: a vulnerable pin, or one that could not be looked up (listed above)' >&2; exit 1; }

data: $(VENV)/runs ## Fashion-MNIST: from DATA, from Debian's package or by download
	$(FETCH)

eval: $(VENV)/runs ## evaluate the newest finished checkpoint of CONFIG
	$(LLGAE) eval --config $(CONFIG)

sweep: data ## the K x E grid on Fashion-MNIST, two cells at a time
	$(LLGAE) sweep --config configs/sweeps/fashion_mnist.yaml -j 2 --resume

report: $(VENV)/runs ## one HTML page on the newest finished checkpoint of CONFIG
	$(LLGAE) report --config $(CONFIG) -o build/report.html

smoke: $(VENV)/runs ## one training on synthetic data: offline, under a minute
	$(LLGAE) train --config configs/smoke.yaml --set checkpoint-dir=build/smoke
	$(LLGAE) runs build/smoke

soak: install ## 2,000 trainings and 2,000 evaluations in one process; prints memory, open files, threads
	LLGAE_SOAK_RUNS=2000 $(BIN)/python -m pytest -s tests/reliability/test_runs.py -k pile

bench: install ## speed, as ratios to the machine's matrix product and to scikit-learn
	$(FETCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(LLGAE) bench

browser: ## headless Chromium and its driver, from Debian, for the tests of the report
	command -v chromium && command -v chromedriver || (apt-get update --quiet && apt-get install --quiet --yes chromium chromium-driver)

clean: ## remove all that make created, except checkpoints and data
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
