# SPDX-License-Identifier: Apache-2.0
#
# Every target makes the virtual environment it needs, so each works alone on a fresh machine: see `make help`.

PYTHON ?= python3
export PYTHON
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# Targets share one environment, and measure time: never two at once.
.NOTPARALLEL:
.DEFAULT_GOAL := help

LOCK := requirements-dev.lock
# Test processes side by side. Tests mostly wait for other processes, so a small machine still gets two.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$(( n < 2 ? 2 : n > 8 ? 8 : n )))
# More arguments for pytest: make test ARGS="-k handshake -x"
ARGS ?=
# The time a `make fuzz` run gets, in minutes: for Python, and for C.
MINUTES ?= 5
# The TVM release for `make test-interop`, and the tvm-ffi to go with it ("" for the newest that fits).
TVM ?= 0.26.*
TVM_FFI ?= $(if $(filter 0.25%,$(TVM)),0.1.12)

VENV := .venv
DEMO_VENV := .venv-demo
TVM_VENV = .venv-tvm-$(subst *,x,$(TVM))
TVM_LOCK = build/constraints-tvm-$(subst *,x,$(TVM)).txt
# The fuzz and bench folders are run from here, the tools by the environment's own paths.
BIN := $(VENV)/bin
# Compilers and ninja are looked up on PATH by the code under test. A test run starts Python thousands of times: modules
# are compiled once, whatever the surroundings say.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONDONTWRITEBYTECODE=

.PHONY: help demo firmware test test-tls lint format types docs diagrams fuzz bench test-long test-interop test-soak test-fleet lock clean \
	env-demo env-test env-lint env-docs env-fuzz env-bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: env-demo ## run the whole of the main job on this machine
	@PATH="$(CURDIR)/$(DEMO_VENV)/bin:$$PATH" $(DEMO_VENV)/bin/rpcflow demo

firmware: env-test ## build examples/firmware for the boards and as a process, into build/firmware
	@scripts/system-packages c++ arm-gcc riscv-gcc
	@mkdir -p build/firmware
	@$(BIN)/python examples/firmware/tvm_kernel.py build/firmware
	@for board in lm3s6965evb mps2-an386 riscv-virt posix posix-serial; do \
		$(BIN)/python -m rpcflow.minrpc --board $$board -o build/firmware/$$board examples/firmware/kernels.c \
			build/firmware/tvm_kernel-$${board%-serial}.o; \
		echo "build/firmware/$$board"; \
	done
	@$(BIN)/python -m rpcflow.minrpc.sizes --board lm3s6965evb --flash 12288 --ram 1024

test: env-test ## run the tests (ARGS="..." for pytest, JOBS=n processes)
	@$(RUN) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

test-tls: env-test ## the tests of sessions once more, over TLS
	@RPCFLOW_TEST_OVER=tls $(RUN) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup \
		-m "not long and not tcp" tests/client tests/sync $(ARGS)

lint: env-lint ## check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: env-lint ## put style right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: env-lint ## check types, strictly
	@$(BIN)/mypy --strict rpcflow

docs: env-docs ## build the documentation site, warnings being errors
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

diagrams: env-test ## draw the state machines anew from their tables
	@$(BIN)/python -m rpcflow.session.diagram > docs/explanation/states.md.new
	@mv docs/explanation/states.md.new docs/explanation/states.md

fuzz: env-fuzz ## fuzz codecs and state machines, then the C runtime (MINUTES=n for each)
	@$(RUN) $(BIN)/python -m fuzz --minutes $(MINUTES)
	@scripts/fuzz-c $(MINUTES)

bench: env-bench ## measure side by side with other RPC systems
	@$(RUN) $(BIN)/python -m benchmarks

test-long: ## older TVM releases, the soak, and the fleet's storm
	@$(MAKE) --no-print-directory test-interop TVM=0.25.0 TVM_FFI=0.1.12
	@$(MAKE) --no-print-directory test-interop TVM='0.26.*' TVM_FFI=
	@$(MAKE) --no-print-directory test-soak
	@$(MAKE) --no-print-directory test-fleet

test-interop: ## tests/interop against one TVM release (TVM=0.26.0 TVM_FFI=0.1.13.post3)
	@scripts/system-packages venv c++ ninja --optional opencl vulkan glslang
	@mkdir -p build
	@grep -vE '^apache-tvm(-ffi)?==' $(LOCK) > $(TVM_LOCK)
	@scripts/environment $(TVM_VENV) $(TVM_LOCK) \
		-e '.[server,opencl,vulkan,webgpu,test]' 'apache-tvm==$(TVM)' $(if $(TVM_FFI),'apache-tvm-ffi==$(TVM_FFI)')
	@PATH="$(CURDIR)/$(TVM_VENV)/bin:$$PATH" $(TVM_VENV)/bin/python -m pytest -n $(JOBS) --dist loadgroup \
		tests/interop $(ARGS)

test-soak: env-test ## 500 sessions one after another
	@$(RUN) $(BIN)/python -m pytest -m soak --timeout 1800 $(ARGS)

test-fleet: env-test ## 50 servers killed and started at random for two minutes (RPCFLOW_TEST_SEED=n)
	@$(RUN) $(BIN)/python -m pytest -m fleet --timeout 900 -s $(ARGS)

lock: ## write requirements-dev.lock anew
	@scripts/lock

clean: ## remove all that these targets made
	rm -rf .venv .venv-demo .venv-tvm-* build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache

env-demo:
	@scripts/system-packages venv c++ ninja
	@scripts/environment $(DEMO_VENV) $(LOCK) -e '.[server]'
env-test:
	@scripts/system-packages venv c++ ninja --optional ip bwrap chromium clang arm-gcc riscv-gcc qemu-arm qemu-riscv \
		opencl vulkan glslang
	@scripts/environment $(VENV) $(LOCK) -e '.[all,test,interop,lint]'
env-lint:
	@scripts/environment $(VENV) $(LOCK) -e '.[all,test,interop,lint]'
env-docs:
	@scripts/environment $(VENV) $(LOCK) -e '.[all,docs]'
env-fuzz:
	@scripts/system-packages venv c++ ninja clang
	@scripts/environment $(VENV) $(LOCK) -e '.[all,test,interop,lint]'
	@scripts/environment $(VENV) $(LOCK) -e '.[fuzz]'
env-bench:
	@scripts/system-packages venv c++ ninja --optional arm-gcc qemu-arm opencl
	@scripts/environment $(VENV) $(LOCK) -e '.[all,test,interop,lint]'
	@scripts/environment $(VENV) $(LOCK) -e '.[bench]'
