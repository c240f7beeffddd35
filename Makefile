# make study: set everything up, train a small ladder, fit its law, write a report.
# make test:  set everything up and run the tests.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PEER ?=

.PHONY: study test lint bench

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanoscale needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

study: $(VENV)/.ready
	$(RUN) -m nanoscale study studies/quick.toml

test: $(VENV)/.ready
	$(RUN) -m pytest

lint: $(VENV)/.ready
	$(RUN) -m ruff check .

bench: $(VENV)/.ready
	$(RUN) docs/results/speed/measure.py $(if $(PEER),--peer=$(PEER))
