# All targets set up what they need in .venv. The first one takes minutes; after that they start at once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/

.PHONY: help demo test test-all lint fixup bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' Makefile

demo: $(READY) ## draw a dataset, train four networks on it, and compare them (4 minutes)
	$(RUN)sda demo

test: $(READY) ## run all tests but the slow ones
	$(RUN)pytest -q -n 2 --dist worksteal -m "not slow"

test-all: $(READY) ## run all tests
	$(RUN)pytest -q -n 2 --dist worksteal

lint: $(READY) ## check style, format and types
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

fixup: $(READY) ## fix style and format where possible
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

bench: $(READY) ## run the quick benchmarks at a small size; benchmarks/README.md describes all of them
	$(RUN)python benchmarks/pack.py --images 4 --rounds 2
	$(RUN)python benchmarks/doctor.py --images 4 --pairs 1000
	$(RUN)python benchmarks/selection_scale.py --images 10000

clean: ## delete .venv and all caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(READY): setup.cfg constraints.txt
	test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $(READY)
