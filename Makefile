# `make demo` rewrites a model; `make test` runs every check. Both set up .venv by themselves.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.PHONY: demo test lint clean
demo: .venv/ready
	mkdir -p build
	$(BIN)/fxapprox rewrite examples/resnet.py --policy topk --output build/resnet_topk.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

clean:
	rm -rf .venv build
