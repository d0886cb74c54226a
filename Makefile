# `make demo` and `make test` do everything on a machine that has Python 3.11 or newer and make.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SNAKEMAKE := $(BIN)/snakemake --profile local

.PHONY: demo test test-slurm acceptance lint format clean

# Whole DAG at quick size: networks, spikes, fits, scores, figures, report.
demo: $(READY)
	$(SNAKEMAKE) --configfile config/quick.yaml
	@echo "Scores: results/quick/scores.parquet   figures: results/quick/figures/   report: results/quick/report.html"

test: $(READY)
	$(BIN)/python -m pytest -m "not acceptance and not slurm" -n 2 --dist loadfile

# A real Slurm on this machine, interrupted in every way: about 20 minutes. Needs root; installs Slurm by apt-get if absent.
test-slurm: $(READY)
	$(BIN)/python -m pytest tests/slurm -rA

# Minutes-long checks against published numbers; they read the data sets in $$CTDB_DATA.
acceptance: $(READY)
	$(BIN)/python -m pytest -m acceptance -rA

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint --configfile config/quick.yaml

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

clean:
	rm -rf .venv

# One environment of exact versions. torch comes from wherever pip is set up to find it: on Linux the package index
# serves the CUDA build, which also runs without a GPU.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "ctdb needs Python 3.11 or newer; name one by: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
