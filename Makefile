# make study: install what a study needs, train a small ladder, fit its law, seal and judge a forecast.
# make test:  install the rest too, and run the tests.
# make check: lint, types and the quick tests, while you work.
# make soak:  the campaigns at full size, hours; docs/results/soak.md has what they found.
# make wheel: a wheel with kernels for who has no compiler.
# make docs:  the site, docs/_build/html; it needs no network.
# make gpu-check: what waits for a GPU, in 8 minutes.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PEER ?=
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Tests make tiny models: a process of one thread per core is fastest.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

.PHONY: study test check lint types soak bench wheel gpu-check docs

# What a study needs, and no more.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanoscale needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

# What the tests need: every extra but the largest.
$(VENV)/.dev: $(VENV)/.ready
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(INSTALL) -e '.[docs]'
	touch $@

study: $(VENV)/.ready
	$(RUN) -m nanoscale study studies/quick.toml

test: $(VENV)/.dev
	$(PYTEST)

check: lint types
	$(PYTEST) -m "not slow and not soak"

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.dev
	$(RUN) -m mypy

soak: $(VENV)/.dev
	$(RUN) docs/results/soak.py

wheel: $(VENV)/.ready
	$(RUN) -c 'from nanoscale.model import kernels; kernels.ship()'
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir dist . ; done=$$?; rm -f nanoscale/model/*.so; exit $$done

bench: $(VENV)/.ready
	$(RUN) docs/results/speed/measure.py $(if $(PEER),--peer=$(PEER))

gpu-check: $(VENV)/.ready
	$(RUN) docs/results/speed/gpu_check.py

docs: $(VENV)/.docs
	$(RUN) -m sphinx -q -W --keep-going -b html docs docs/_build/html
