# make demo and make test set everything up by themselves, in .venv; the second time they start at once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/

.PHONY: demo test test-all lint fixup clean

demo: $(READY)
	$(RUN)sda demo

test: $(READY)
	$(RUN)pytest -q -n 2 -m "not slow"

test-all: $(READY)
	$(RUN)pytest -q -n 2

lint: $(READY)
	$(RUN)ruff check .
	$(RUN)ruff format --check .

fixup: $(READY)
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

$(READY): setup.cfg constraints.txt
	test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
