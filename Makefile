# `make demo` and `make test` are all a fresh machine needs: each makes what it needs in .venv first.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DATA   ?= scenes
PEER   := bench/peers/.venv-clip_benchmark
TRAINER := bench/peers/.venv-open_clip_train
SHARDS ?=
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo test lint check format bench bench-eval bench-train peers-eval peers-train clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11 or later, or set PYTHON=python3.x"; exit 1; }
	@echo "installing into $(VENV): a few minutes, about 6 GB (torch brings its GPU libraries)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## make .venv with the tested versions

demo: $(STAMP)  ## render scenes, train, evaluate, search, write runs/out/demo/report.html (DATA=folder for real shards)
	VLP=$(BIN)/vlp bash runs/demo.sh "$(DATA)"

test: $(STAMP)  ## every test, slow ones too
	$(BIN)/python -m pytest

lint: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## format, lint, types, house rules, fast tests
	$(BIN)/python -m pytest -m "not slow"

format: $(STAMP)  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix . || true
	$(BIN)/ruff format .

bench: $(STAMP)  ## side-by-side measurements against peers, one after the other
	@failed=; for script in $$(grep -l __main__ bench/*.py | grep -vE 'bench/(suite|memory|resume|scaling|loader|train|same_batches|safety)\.py'); do echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

$(PEER)/.installed: bench/peers/clip_benchmark.txt
	@echo "installing CLIP_benchmark into $(PEER): a few minutes, about 6 GB"
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --requirement $<
	@touch $@

peers-eval: $(PEER)/.installed  ## environment of CLIP_benchmark, for bench-eval alone

bench-eval: $(STAMP) peers-eval  ## `vlp eval` beside CLIP_benchmark: ten data sets, ten minutes, a quiet machine
	$(BIN)/python bench/suite.py

$(TRAINER)/.installed: bench/peers/open_clip_train.txt
	@echo "installing open_clip_train into $(TRAINER): a few minutes, about 6 GB"
	$(PYTHON) -m venv $(TRAINER)
	$(TRAINER)/bin/python -m pip install --quiet --requirement $<
	@touch $@

peers-train: $(TRAINER)/.installed  ## environment of open_clip_train, for bench-train alone

bench-train: $(STAMP) peers-train  ## loading and training beside open_clip_train: an hour, a quiet machine (SHARDS='glob' of one's own)
	$(BIN)/python bench/same_batches.py $(if $(SHARDS),--shards '$(SHARDS)')
	$(BIN)/python bench/loader.py $(if $(SHARDS),--shards '$(SHARDS)')
	$(BIN)/python bench/safety.py $(if $(SHARDS),--shards '$(SHARDS)')
	$(BIN)/python bench/train.py --shares --rounds 3 $(if $(SHARDS),--shards '$(SHARDS)')

clean:  ## remove what runs and tests made; .venv stays
	rm -rf runs/out .pytest_cache .mypy_cache .ruff_cache
