# make demo   a study with known truth, an atlas of it, a report to open
# make test   every check and test
# make clean  remove what the two have made

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test check clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "== environment in $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "== test extras"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/installed
	@echo "== 1 of 3: simulate a study of three diseases whose truth is known"
	$(BIN)/invatlas simulate $(DEMO)/study.h5ad --cells 6000 --donors 28 --seed 0 --overwrite
	@echo "== 2 of 3: fit an atlas"
	$(BIN)/invatlas fit $(DEMO)/study.h5ad --biological cell_type --biological disease \
		--technical donor --technical batch --output $(DEMO)/atlas --overwrite
	@echo "== 3 of 3: what it holds"
	$(BIN)/invatlas info $(DEMO)/atlas
	@echo "== open $(DEMO)/atlas/report.html in a browser; . $(BIN)/activate brings the command invatlas"

check: $(VENV)/installed-test
	@echo "== format, lint, import layers, types"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/layers.py
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks/*.py

test: check
	@echo "== tests"
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) $(DEMO)
