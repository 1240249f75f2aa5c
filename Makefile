# The two commands of the README are `make demo` and `make test`; CONTRIBUTING.md explains the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY_VERSION := 2.60.0
ZMQ_VERSION := 27.2.0
REDIS_VERSION := 8.1.0
# Where torch comes from, if not from where pip looks already: a package index's address.
TORCH_INDEX ?=
# Which build of it: auto (the one for CPUs where there is no NVIDIA driver), cpu or any.
export TORCH_BUILD ?= auto
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

# Daemons and workers are started by the hundred: each would compile all of zenos again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test install lint format types imports docs soak fuzz bench bench-preempt bench-peers clean help

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(STAMP) ## Make .venv and install into it (done by the others when needed)

# Built in steps, so that torch's build can be chosen, and the stamp is made last.
$(STAMP): pyproject.toml constraints.txt scripts/install-torch
	@command -v $(firstword $(PYTHON)) >/dev/null || { \
	  echo "cannot install: there is no program $(PYTHON); set PYTHON to one of version 3.11 or newer"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys' || { \
	  echo "cannot install: $(PYTHON) does not run as a Python; set PYTHON to another one"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "cannot install: $(PYTHON) is older than 3.11; set PYTHON to a newer one"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "cannot make $(VENV): Python's venv module is missing; type:"; \
	  echo "    sudo apt-get install -y python3-venv"; exit 1; }
	@echo "Installing into $(VENV), once: about 300 MB where there is a CPU build of torch, gigabytes"
	@echo "else. One to three minutes at 50 Mbit/s; a slower network takes longer."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "1 of 2: torch $(TORCH_VERSION)"
	@scripts/install-torch $(BIN)/python $(TORCH_VERSION) $(TORCH_INDEX:%=--index-url %)
	@echo "2 of 2: zenos and the libraries of constraints.txt"
	@$(BIN)/python -m pip install --quiet $(TORCH_INDEX:%=--extra-index-url %) \
	  -c constraints.txt -e '.[dev,demo,gpu,plot]'
	@touch $(STAMP)

demo: $(STAMP) ## Train a language model on this machine, serve it, ask it (about three minutes, and the installation)
	$(BIN)/zenos demo

# Most tests wait for processes, so more of them run at once than there are cores.
TEST_WORKERS ?= 3

test: $(STAMP) ## All tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Put the code into ruff's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## The layers
	$(BIN)/lint-imports

docs: $(STAMP) ## Is everything documented that a user can name?
	$(BIN)/python -m pytest tests/docs

soak: $(STAMP) ## The long storms
	$(BIN)/python -m pytest -m soak --timeout=7200 tests

FUZZ_S ?= 60
fuzz: $(STAMP) ## Bytes of any kind at the bus's decoders, for FUZZ_S seconds (by coverage, with the extra `fuzz`)
	$(BIN)/python -m tests.bus.fuzz --seconds $(FUZZ_S)

bench: $(STAMP) ## Ours beside the peers', one table (leave the machine alone meanwhile)
	$(BIN)/python -m benchmarks --markdown docs/benchmarks.md --json docs/benchmarks.json

bench-preempt: $(STAMP) ## Preemption to first token: requests while a training holds the memory
	$(BIN)/python -m benchmarks preemption

bench-peers: .venv-peers/.installed ## Install the peers that `make bench` measures beside us (Ray, ZeroMQ; redis-server comes from apt-get)

.venv-peers/.installed: Makefile
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet ray==$(RAY_VERSION) pyzmq==$(ZMQ_VERSION) redis==$(REDIS_VERSION) numpy
	@touch $@

clean: ## Remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis
