# The same verbs for people and for continuous integration.
VENV ?= .venv
PIP := $(VENV)/bin/pip
PYTHON := $(VENV)/bin/python
# An extra package index, for a machine that wants another build of PyTorch: make demo TORCH_INDEX=...
TORCH_INDEX ?=

.PHONY: demo test coverage lint boundaries check format clean

$(VENV)/.ok: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	touch $@

demo: $(VENV)/.ok
	$(VENV)/bin/anomaly demo --out runs/demo

# A file's tests go to one worker, which makes once what they share.
test: $(VENV)/.ok
	$(PYTHON) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

coverage: $(VENV)/.ok
	$(PYTHON) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term

boundaries: $(VENV)/.ok
	$(PYTHON) -m pytest -q -n 0 tests/test_architecture.py

lint: $(VENV)/.ok
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

check: lint test

format: $(VENV)/.ok
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
