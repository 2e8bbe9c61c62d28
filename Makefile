# `make demo` and `make test` do all the set-up themselves, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo

.PHONY: demo test check notebooks slow table clean

demo: $(STAMP)  ## distil the embedded teacher to a few steps, export it, measure it, write runs/demo/report.html
	$(BIN)/stepdistill distill recipes/emoji_dmd2_demo.yaml train.output_dir=$(RUN)

test: $(STAMP)  ## lint, types, tests and doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(STAMP)  ## what belongs before every commit: lint, types, fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not distributed"

notebooks: $(STAMP)  ## run the notebooks with their full settings and keep what they show
	$(BIN)/python notebooks/execute.py

# torch first and constrained: an unconstrained torch brings gigabytes of CUDA to a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build dist
