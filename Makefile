# `make help` lists the targets. Nothing needs more than Python 3.10+, make and a package index.

PYTHON ?= python3
JOBS ?= 2
SAMPLE := sample_checkpoints/digits.keras

FUZZ_SECONDS ?= 60
FUZZ_CORPUS ?= .fuzz

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

# Small matrices in batches: one thread a process is fastest, and leaves the cores to pytest's workers.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench reproduce fuzz samples clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## install into .venv and analyse a trained network
	@echo '$$ convsv analyze --method circulant $(SAMPLE)'
	@$(BIN)/convsv analyze --method circulant --format table $(SAMPLE)

test: $(VENV)/.installed-dev ## run all tests
	$(BIN)/pytest --numprocesses $(JOBS)

check: $(VENV)/.installed-dev ## lint, format, types, layering, and docs that match the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest --quiet tests/test_docs.py

docs: $(VENV)/.installed-dev ## rewrite what README and docs take from the code
	$(BIN)/python tests/catalogue.py
	$(BIN)/python docs/make_figures.py

bench: $(VENV)/.installed-dev ## run the benchmarks, one after the other
	@set -e; for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

reproduce: $(VENV)/.installed-dev ## run the papers' experiments again and write docs/reproduction.md (CIFAR=DIR)
	$(BIN)/python tests/reproduce $(if $(CIFAR),--cifar '$(CIFAR)')

fuzz: $(VENV)/.installed-fuzz ## fuzz every reader, each for FUZZ_SECONDS (60)
	@found=; for target in $$($(BIN)/python tests/fuzz/targets.py); do \
		echo "== $$target"; $(BIN)/python tests/fuzz/fuzz.py "$$target" "$(FUZZ_CORPUS)/$$target" \
			-max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 || found="$$found $$target"; done; \
		if [ "$$found" ]; then echo "findings:$$found; see $(FUZZ_CORPUS)"; exit 1; fi

samples: .venv-samples/.installed ## train the sample network again and write all sample checkpoints
	.venv-samples/bin/python sample_checkpoints/make_samples.py

clean: ## remove the environments and every cache
	rm -rf $(VENV) .venv-samples $(FUZZ_CORPUS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------------------------------- set-up
# A stamp is as old as the last install; a changed pyproject.toml or constraints file makes it run again.

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "convsv needs Python 3.10 or later; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $*

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) hatchling editables
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable '.[dev,fuzz]'
	@touch $@

.venv-samples/.installed: pyproject.toml $(CONSTRAINTS) | .venv-samples/bin/python
	.venv-samples/bin/python $(PIP_INSTALL) hatchling editables
	.venv-samples/bin/python $(PIP_INSTALL) --no-build-isolation --editable '.[samples]'
	@touch $@
