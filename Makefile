PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= tests/demo_model/python-7m
HOST ?= 127.0.0.1
MINUTES ?= 10
CASES ?= 100000
SEED ?= 1
SANITIZE ?= address,undefined
STREAMS ?= 200
SOAK_MODEL ?= tensorrt_llm
BUILD := build
CUDA_PACKAGES = $$($(BIN)/python ci/requirements.py cuda | grep ^nvidia-)
# pip's output as one line a package that is new
SHOW_PACKAGES := sed -un 's/^Collecting \([^ ]*\).*/  \1/p'
SHELL := bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help

.PHONY: help build demo serve soak fuzz race test test-gpu lint format wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/server.stamp: pyproject.toml ci/requirements.py ci/install_system_packages.sh
	@bash ci/install_system_packages.sh $(PYTHON)
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned Python packages"
	@$(BIN)/python ci/requirements.py build server > $(VENV)/requirements.txt
	@$(BIN)/pip install --disable-pip-version-check --progress-bar off -r $(VENV)/requirements.txt | $(SHOW_PACKAGES)
	@command -v nvcc > /dev/null || exit 0; echo "nvcc is here: installing cuBLAS (423 MB) for the CUDA engine"; \
	  $(BIN)/pip install --disable-pip-version-check --progress-bar off --no-deps $(CUDA_PACKAGES) | $(SHOW_PACKAGES)
	@$(BIN)/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'inflight.pth').write_text(str(pathlib.Path('tools').resolve()) + '\n')"
	@printf '#!/bin/sh\nexec "%s/python" -m inflight "$$@"\n' "$(CURDIR)/$(BIN)" > $(BIN)/inflight && chmod +x $(BIN)/inflight
	@touch $@

$(VENV)/test.stamp: $(VENV)/server.stamp
	@echo "Installing the test packages (torch, transformers: the oracle)"
	@$(BIN)/python ci/requirements.py build server test plot > $(VENV)/requirements.txt
	@$(BIN)/pip install --disable-pip-version-check --progress-bar off -r $(VENV)/requirements.txt | $(SHOW_PACKAGES)
	@touch $@

$(BUILD)/build.ninja: | $(VENV)/server.stamp
	@echo "Configuring the C++ build"
	@mkdir -p $(BUILD)
	@$(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" \
	  -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DCMAKE_BUILD_TYPE=Release > $(BUILD)/configure.log 2>&1 \
	  || { cat $(BUILD)/configure.log; rm -f $(BUILD)/build.ninja; exit 1; }

build: $(VENV)/server.stamp $(BUILD)/build.ninja ## build the C++ side in place
	@NINJA_STATUS="[%f/%t] " $(BIN)/ninja -C $(BUILD) | { grep -v -e 'ninja: no work' -e 'Entering directory' || true; }

demo: build ## stream a completion through a real tritonserver, on the CPU
	@$(BIN)/inflight demo --model "$(MODEL)"

serve: build ## MODEL=<engine or checkpoint folder> HOST=<address> OPENAI=1 (its interface on port 9000): leave a server up on ports 8000, 8001, 8002
	@$(BIN)/inflight serve "$(MODEL)" --host $(HOST) $(if $(OPENAI),--openai)

soak: build ## MINUTES=10 STREAMS=200: a server under clients that cancel, leave and err; every answer checked
	@$(BIN)/inflight soak "$(MODEL)" --streams $(STREAMS) --minutes $(MINUTES) --model $(SOAK_MODEL) \
	  --set kv_cache_cpu_memory_bytes=67108864

# $(1): -fsanitize= value, $(2): build folder, $(3): programs
SANITIZED = $(BIN)/cmake -S . -B $(2) -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" -DINFLIGHT_CUDA=OFF \
	  -DINFLIGHT_PYTHON=OFF -DINFLIGHT_BACKEND=OFF -DCMAKE_BUILD_TYPE=Release -DINFLIGHT_SANITIZE=$(1) > /dev/null && \
	  NINJA_STATUS="[%f/%t] " $(BIN)/ninja -C $(2) $(3)

fuzz: build $(VENV)/test.stamp ## CASES=100000 SANITIZE=address,undefined: random input for everything that comes from outside
	@$(call SANITIZED,$(SANITIZE),$(BUILD)-fuzz,fuzz_tests)
	@UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1 \
	  $(BUILD)-fuzz/tests/fuzz_tests --cases $(CASES) --seed $(SEED)
	@$(BIN)/python tests/triton/fuzz_wire.py --cases $(CASES) --seed $(SEED)

race: $(VENV)/server.stamp ## batcher, executor, its faults and the fuzz targets under ThreadSanitizer
	@$(call SANITIZED,thread,$(BUILD)-race,batcher_tests faults_tests fuzz_tests)
	@export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1; cd $(BUILD)-race/tests && \
	  ./batcher_tests --gtest_brief=1 && ./faults_tests --gtest_brief=1 && ./fuzz_tests --cases 4000 --seed $(SEED)

test: build $(VENV)/test.stamp ## all tests, with one summary
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-gpu: build $(VENV)/test.stamp ## the tests that need a GPU; elsewhere they say that they are skipped
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/python/test_cpp.py tests/python/test_executor_gpu.py -k "cuda_tests or executor_gpu"

lint: $(VENV)/server.stamp ## formatting and static checks
	@$(BIN)/pip install -q --disable-pip-version-check $$($(BIN)/python ci/requirements.py dev | grep -E '^(ruff|clang-format)')
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@git ls-files '*.cpp' '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/server.stamp ## apply the formatters
	@$(BIN)/pip install -q --disable-pip-version-check $$($(BIN)/python ci/requirements.py dev | grep -E '^(ruff|clang-format)')
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .
	@git ls-files '*.cpp' '*.h' | xargs $(BIN)/clang-format -i

wheel: $(VENV)/server.stamp ## a wheel with tools, executor, backend and templates
	@$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .

clean: ## remove what was built (the virtual environment stays)
	rm -rf $(BUILD) $(BUILD)-fuzz $(BUILD)-race dist
