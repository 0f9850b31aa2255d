# Every target that needs the environment makes it first: `make serve` and `make test` are all a newcomer types.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: lock setup serve test check fix bench golden parity parity-flax contract gpu-smoke gpu-compile bench-gpu live-pull crash bud conformance

setup: $(STAMP)

$(STAMP): requirements/cpu.txt requirements/dev.txt requirements/cuda.txt pyproject.toml setup.py scripts/setup.py \
		$(wildcard engines/decoder/native/src/*)
	@$(PYTHON) scripts/setup.py --venv $(VENV)
	@touch $(STAMP)

serve: $(STAMP)
	@$(BIN)/gemmule serve

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu and not contract and not parity"

# The slow ones start servers and watch the clock: one after the other.
test: $(STAMP)
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu and not contract and not parity"
	$(BIN)/pytest -m "slow and not gpu and not contract and not parity"

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header -q --group build

lock:
	$(LOCK) -o requirements/cpu.txt
	$(LOCK) -c requirements/cpu.txt --extra cuda -o requirements/cuda.txt
	$(LOCK) -c requirements/cpu.txt --extra orbax --group dev -o requirements/dev.txt

contract: $(STAMP)
	$(BIN)/pytest -m contract --timeout 1200

golden: $(STAMP) $(ORACLE)/.ready
	$(PARITY) -m tests.parity.make_golden
	GEMMULE_GOLDEN=1 $(BIN)/pytest -m "not slow and not gpu and not contract and not parity"

ORACLE ?= .cache/oracle

$(ORACLE)/.ready:
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/pip install -q --require-hashes -r requirements/dev.txt
	$(ORACLE)/bin/pip install -q torch==2.13.0 transformers==5.23.0
	@touch $@

LLAMA_CPP := llama_cpp_python-0.3.36

# Built from source, which takes minutes once: the source tree also has llama.cpp's converter.
$(ORACLE)/.llama: $(ORACLE)/.ready
	$(ORACLE)/bin/pip download -q --no-deps --no-binary :all: -d $(ORACLE) llama-cpp-python==0.3.36
	tar -xzf $(ORACLE)/$(LLAMA_CPP).tar.gz -C $(ORACLE)
	$(ORACLE)/bin/pip install -q $(ORACLE)/$(LLAMA_CPP)
	@touch $@

PARITY := OMP_NUM_THREADS=1 PYTHONPATH=. LLAMA_CPP_SOURCE=$(abspath $(ORACLE))/$(LLAMA_CPP)/vendor/llama.cpp \
	$(ORACLE)/bin/python

parity: $(ORACLE)/.ready $(ORACLE)/.llama
	$(PARITY) -m pytest tests/parity tests/modelfiles/templates/test_jinja_parity.py -m parity -W default --timeout 0

FLAX ?= .cache/flax
PYTHON312 ?= python3.12

# The gemma package 4.x needs Python 3.12; what of kauldron its models do not use would bring TensorFlow.
$(FLAX)/.ready: tests/parity/flax.txt
	$(PYTHON312) -m venv $(FLAX)
	$(FLAX)/bin/pip install -q -r tests/parity/flax.txt
	$(FLAX)/bin/pip install -q --no-deps gemma==4.0.1 kauldron==1.4.4 clu==0.0.12
	@touch $@

parity-flax: $(FLAX)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=. $(FLAX)/bin/python -m pytest tests/parity/test_gemma_package.py -m parity \
		-W default --timeout 0

bench: $(STAMP)
	$(BIN)/python -m tests.bench

bud: $(STAMP)
	$(BIN)/python -m engines.decoder.bud

crash: $(STAMP)
	$(BIN)/python -m tests.registry.crash.sweep
	$(BIN)/python -m tests.registry.crash.replay

live-pull: $(STAMP)
	$(BIN)/python -m tests.registry.live_pull

bench-gpu: $(STAMP)
	$(BIN)/python -m tests.gpu.bench

GPU_COMPILER ?= .cache/gpu-compiler

$(GPU_COMPILER)/.ready: $(STAMP)
	$(BIN)/python -m tests.gpu.plugin $(GPU_COMPILER)
	@touch $@

gpu-compile: $(GPU_COMPILER)/.ready
	PYTHONPATH=$(GPU_COMPILER) $(BIN)/python -m tests.gpu.compile

gpu-smoke: $(STAMP)
	$(BIN)/python -m tests.gpu.smoke

CONFORMANCE ?= .cache/conformance

$(CONFORMANCE)/.ready: tests/conformance/requirements.txt
	$(PYTHON) -m venv $(CONFORMANCE)
	$(CONFORMANCE)/bin/pip install -q --require-hashes -r tests/conformance/requirements.txt
	@touch $@

conformance: $(STAMP) $(CONFORMANCE)/.ready
	$(BIN)/python -m tests.conformance.openai_python --python $(CONFORMANCE)/bin/python --cache $(CONFORMANCE)
	$(BIN)/python -m tests.conformance.json_schema
	$(BIN)/python -m tests.conformance.generation
