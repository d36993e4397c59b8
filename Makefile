# The commands of the project. The environment is made once and used offline afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PYTHONWARNINGS ?= ignore::DeprecationWarning
PYTEST := PYTHONWARNINGS= $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help env demo test test-unit test-slow test-all check format bench calibrate bench-drift calibrate-drift ui dist clean java

help: ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /	/' | expand -t 14

env: $(READY) ## The environment in .venv, with pinned versions

$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "mltrust needs Python 3.11 or newer: found $$($(PYTHON) --version 2>&1 || echo none). Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || \
		{ echo "the packages could not be installed: the first time needs the network" >&2; exit 2; }
	@touch $@

java:
	@java="$${JAVA_HOME:+$$JAVA_HOME/bin/}java"; found=$$("$$java" -version 2>&1) || \
		{ echo "mltrust needs Java 17 or 21 for Spark: no java found (JAVA_HOME or PATH)" >&2; exit 2; }; \
	echo "$$found" | grep -qE 'version "(17|21)' || \
		{ echo "mltrust needs Java 17 or 21 for Spark: found $$(echo "$$found" | head -n 1)" >&2; exit 2; }

demo: java $(READY) ## A simulated lakehouse, all jobs, planted against found
	$(BIN)/mltrust demo

test: java $(READY) ## The suite without its slow part
	$(PYTEST) tests/unit tests/oracle -m "not slow" --numprocesses auto
	$(PYTEST) tests/spark -m "not slow" --numprocesses 3 --dist loadfile
	$(PYTEST) tests/jobs -m "not slow" --numprocesses 3 --dist loadfile
	$(PYTEST) tests/real -m "not slow"

test-unit: $(READY) ## What needs no JVM
	$(PYTEST) tests/unit tests/oracle -m "not slow" --numprocesses auto

test-all: test test-slow ## The whole suite

test-slow: java $(READY) ## What test leaves out: kill loops, second JVMs, whatever takes long
	$(PYTEST) tests/unit tests/oracle tests/spark -m slow --numprocesses 2 --dist loadfile
	$(PYTEST) tests/jobs tests/real -m slow

check: $(READY) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mltrust jobs
	$(BIN)/lint-imports

format: $(READY) ## Formats the code
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: java $(READY) ## Benchmarks, side by side in one run
	$(BIN)/python -m tests.bench

bench-drift: $(READY) ## Alarms of drift on the data of MLTRUST_DATA, into docs/drift-benchmarks.md
	$(BIN)/python -m tests.bench.drift

calibrate-drift: $(READY) ## How often the tests of drift err, by simulation, into docs/drift-calibration.md
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.calibration.drift

calibrate: $(READY) ## How often every test errs, by simulation, into docs/calibration.md (up to 2 hours)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.calibration $(OPTIONS)

ui: $(READY) ## The MLflow UI on what the demo left
	$(BIN)/mlflow ui --backend-store-uri sqlite:///.lakehouse/mlflow.db --host 127.0.0.1 --workers 1

dist: ## dist/mltrust.zip, for spark-submit --py-files
	@mkdir -p dist && rm -f dist/mltrust.zip && find mltrust -name __pycache__ -prune -exec rm -rf {} +
	$(PYTHON) -m zipfile -c dist/mltrust.zip mltrust

clean: ## Removes what demo and test made, not the environment
	rm -rf .lakehouse spark-warehouse metastore_db derby.log dist build
