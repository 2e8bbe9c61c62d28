# `make demo` and `make test` do all the set-up themselves, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PARITY := .venv-parity
PARITY_STAMP := $(PARITY)/.installed
RUN ?= runs/demo

.PHONY: demo test check parity notebooks clean

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

parity:  ## our metrics against the packages of the field, same random weights, in an environment of its own; SKIP_PARITY=1 leaves it out
ifdef SKIP_PARITY
	@echo "parity: skipped, SKIP_PARITY is set"
else
	@$(MAKE) --no-print-directory $(PARITY_STAMP)
	OMP_NUM_THREADS=1 $(PARITY)/bin/python -m pytest tests/parity
endif

notebooks: $(STAMP)  ## run the notebooks with their full settings and keep what they show
	$(BIN)/python notebooks/execute.py

# torch first and constrained: an unconstrained torch brings gigabytes of CUDA to a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# torchvision from the index is a CUDA build: the shim lets it be imported beside a CPU torch (see the file).
$(PARITY_STAMP): pyproject.toml constraints.txt tests/parity/requirements.txt tests/parity/torchvision_shim.py
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fidelity]" -r tests/parity/requirements.txt
	site=$$($(PARITY)/bin/python -c 'import site; print(site.getsitepackages()[0])') \
	  && cp tests/parity/torchvision_shim.py $$site/ && echo "import torchvision_shim" > $$site/torchvision_shim.pth
	touch $(PARITY_STAMP)

clean:
	rm -rf $(VENV) $(PARITY) runs build dist
