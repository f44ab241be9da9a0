# Everything a developer or a CI does; `make help` explains. Two commands suffice on a fresh machine: make demo, make test.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Tests wait for states and run side by side, each worker in a lab of its own; those that measure time limits (marked `alone`)
# run one after the other. WORKERS=N: so many side by side everywhere; 0: none.
export WORKERS ?=
# KVM=require: a test that needs KVM fails where there is none, instead of being skipped.
export KVM ?=
# Compiled Python is kept, also where the environment says otherwise: the tests start hundreds of controllers.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: packages
packages: ## Install missing system packages (apt, as root or with sudo), or print the line to run
	@contrib/packages.sh

$(VENV)/.installed: requirements/dev.txt pyproject.toml | packages
	@py="$(PYTHON)"; [ -n "$$py" ] || py=python3; echo "setting up $(VENV) with $$py"; [ -x $(BIN)/python ] || "$$py" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: venv
venv: $(VENV)/.installed ## Set up the virtual environment (hash-pinned)

.PHONY: images
images: packages ## Build the test guests: Linux (distribution kernel, own workload) and bare (no operating system)
	@vm-images/build.sh

.PHONY: host-image
host-image: venv images ## Build the host machines of `rig up --hosts-as-vms`: kernel, sshd, QEMU 10.0, Python (a minute, once)
	@vm-images/host/build.sh

.PHONY: qemus
qemus: packages ## Fetch those of QEMU 7.2, 10.0 and 11.1 that are not the machine's own into build/qemus, unpacked, not installed
	@contrib/qemus.sh

.PHONY: demo
demo: venv images ## Show one live migration end to end, with proof that the guest survived
	@$(BIN)/qmp-migrate rig demo

# Lint and types run beside the unit tests, and the environment, the images and the QEMUs are made side by side: tests/runs.
.PHONY: test
test: packages ## Run all that CI runs: lint, types, unit, component and system tests (KVM=require: KVM tests must not be skipped)
	@py="$(PYTHON)"; $${py:-python3} -m tests.runs test

.PHONY: check
check: venv ## Lint, types and unit tests (minutes)
	@$(BIN)/python -m tests.runs check

# N, TEST and K reach the program as they are, through the environment: ids of tests hold quotes and spaces.
.PHONY: steady
steady: venv images ## Component and system tests N times, on a busy machine (N=5; TEST='ID …', K=EXPRESSION: these tests alone)
	@contrib/qemus.sh --try
	@$(BIN)/python -m tests.runs steady

.PHONY: test-full
test-full: packages ## Run `make test` and all that is too slow for each commit, here and in a Debian 13; goes on where it stopped
	@py="$(PYTHON)"; $${py:-python3} -m tests.runs full

.PHONY: test-ids
test-ids: venv ## List all tests; with BEFORE=FILE, an older list, show which of those are gone
	@$(BIN)/python -m tests.runs ids

.PHONY: bench
bench: venv images ## Measure against raw QEMU and virsh: table, build/bench.json (SET=policies: the shoot-out; SET=bus: 1,000 agents)
	@$(if $(filter-out policies bus,$(SET)),echo "no such SET: $(SET); there are: policies and bus" >&2; exit 2,:)
	@$(if $(filter policies,$(SET)),contrib/qemus.sh --try,:)
	@$(BIN)/python -m bench$(if $(filter policies,$(SET)),.policies)$(if $(filter bus,$(SET)),.bus) $(ARGS)

.PHONY: faults
faults: venv images ## Bring each fault in each phase: table, build/faults.json and .html (CASE=…, ARGS=…)
	@$(BIN)/python -m tests.faults $(CASE) $(ARGS)

.PHONY: faults-selftest
faults-selftest: venv images ## Seed ten bugs and show that each one is caught
	@$(BIN)/python -m tests.faults.selftest $(ARGS)

.PHONY: lost-ack
lost-ack: venv images ## Lose the acknowledgement of a hand-over, N times (ARGS='--qemu FILE …')
	@$(BIN)/python -m tests.faults.lost_ack --runs $(or $(N),100) $(ARGS)

.PHONY: soak
soak: venv images ## Move one guest to and fro, N times, and compare its memory each time
	@$(BIN)/python -m tests.faults.soak --moves $(or $(N),200)

.PHONY: fuzz
fuzz: venv ## Give all that reads what others wrote a million wrong inputs (INPUTS=1000000), led by coverage where atheris installs
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt \
		|| echo "atheris cannot be installed here: inputs come from mutation alone"
	@$(BIN)/python -m tests.fuzz --inputs $(or $(INPUTS),1000000)

.PHONY: docs
docs: venv ## Build the documentation into docs/_build
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@$(BIN)/sphinx-build -W -q -b html docs docs/_build/html && echo "docs/_build/html/index.html"

.PHONY: dist
dist: venv ## Build wheel, sdist and a Debian package into dist/
	@$(BIN)/python -m build --no-isolation
	@$(BIN)/python contrib/deb.py dist/qmp_migrate-*.whl

# Made with the oldest Python that is supported (Debian 12's): what it resolves installs everywhere.
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --no-header --upgrade

.PHONY: lock
lock: ## Renew the hash-pinned requirements from pyproject.toml (PYTHON=python3.11, the oldest one)
	@$(COMPILE) --extra rig --extra test --extra dev --extra postgresql -o requirements/dev.txt pyproject.toml requirements/build.in
	@$(COMPILE) -o requirements/fuzz.txt requirements/fuzz.in
	@$(COMPILE) --extra docs -c requirements/dev.txt -o requirements/docs.txt pyproject.toml

.PHONY: clean
clean: ## Remove what was built (not the virtual environment)
	@rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache
