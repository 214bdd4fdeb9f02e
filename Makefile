# Everything a newcomer needs. Each target makes its environment first: .venv, installed from requirements.lock alone.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY ?= true
export DO_NOT_TRACK ?= 1

.PHONY: environment run check test lint quick flow review schedule screenshots lock clean results failures clean-data clean-history

run: $(VENV)/installed ## the whole pipeline, then the table of results
	python -m stages.code
	dvc repro linear-probe@gpt
	python -m flows.repro
	dvc repro
	python -m flows.promote --register
	python -m flows.results

results: $(VENV)/installed ## the table of results, with the change since the last commit
	python -m flows.results

check: $(VENV)/installed ## everything that is wrong with params.yaml and compute.yaml, before any stage works
	python -m stages.check

# Tests share the cores: threads that wait must sleep.
test: export GOMP_SPINCOUNT ?= 0
test: $(VENV)/installed ## linters, types and the quick tests at the same time, then the slow ones
	$(MAKE) --no-print-directory -j 2 --output-sync=line lint quick
	python -m pytest -m slow -n auto --maxprocesses 4 --dist worksteal

lint: $(VENV)/installed ## linters and types
	ruff check
	ruff format --check
	mypy

quick: $(VENV)/installed ## the quick tests
	python -m pytest -m "not slow" -n auto --maxprocesses 8

flow: $(VENV)/installed ## the same pipeline as a Prefect flow
	python -m flows.run

review: $(VENV)/installed ## the MLflow UI on every run so far
	python -m flows.review

schedule: $(VENV)/installed ## a Prefect server and worker here, with the nightly and weekly runs of prefect.yaml
	python -m flows.schedule

failures: $(VENV)/installed ## the last run that failed: stage, reason, end of its log
	python -m flows.last_failure

screenshots: $(VENV)/installed ## docs/*.png, from the real MLflow and Prefect pages of this project's runs
	python -m docs.screenshots

environment: $(VENV)/installed ## .venv, from requirements.lock

lock: $(VENV)/installed ## resolve pyproject.toml's ranges anew into requirements.lock
	pip install -q pip-tools
	pip-compile -q --upgrade --all-extras --strip-extras --no-annotate --no-header --no-emit-find-links \
		--no-emit-index-url --no-emit-trusted-host -o requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.lock

$(VENV)/installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pretext needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.lock
	cp requirements.lock $@

clean: ## the environment and what tools have cached: made again in minutes
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +

clean-data: ## outputs of the stages, DVC's cache and checkpoints: made again by make run, or fetched by dvc pull
	rm -rf .checkpoints .dvc/cache .dvc/tmp
	git clean -fdXq data

clean-history: ## MLflow's runs and registry, champions included, and Prefect's runs: gone for good, so CONFIRM=yes
	@test "$(CONFIRM)" = yes || { echo "error: this deletes every run, every registered model and every champion: make clean-history CONFIRM=yes" >&2; exit 2; }
	rm -rf .mlflow .prefect .runs
