# Every target that needs the environment makes it first: `make serve` and `make test` are all a newcomer types.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: lock setup serve test check fix types lint bench golden parity contract gpu-smoke bench-gpu bud clean

setup: $(STAMP)

$(STAMP): requirements/cpu.txt requirements/dev.txt requirements/cuda.txt pyproject.toml setup.py scripts/setup.py
	@$(PYTHON) scripts/setup.py --venv $(VENV)
	@touch $(STAMP)

serve: $(STAMP)
	@$(BIN)/gemmule serve

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not gpu and not contract and not parity"

test: $(STAMP)
	$(BIN)/pytest -m "not gpu and not contract and not parity"

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --group build -q

lock:
	$(LOCK) -o requirements/cpu.txt
	$(LOCK) -c requirements/cpu.txt --extra cuda -o requirements/cuda.txt
	$(LOCK) -c requirements/cpu.txt --extra orbax --group dev -o requirements/dev.txt

gpu-smoke: $(STAMP)
	$(BIN)/python -m tests.gpu.smoke
