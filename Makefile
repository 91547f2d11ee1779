# nibble's commands; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# A file that includes LibTorch takes up to 3 GiB to compile.
JOBS ?= $(shell awk -v cores=$$(nproc) '/MemAvailable/ {m = int($$2 / 3145728); if (m < 1) m = 1; print m < cores ? m : cores}' /proc/meminfo)

.PHONY: help deps build demo test bench lint fuzz cuda test-gpu bench-gpu wheel clean

help:
	@echo "make demo   install, build, quantize SmolLM2 by a job, evaluate it and stream an answer"
	@echo "make test   install, build, run every test"
	@echo "make build  install and build into build/cpu/bin"
	@echo "make bench  measure the CPU path; with LLAMA_PYTHON beside llama.cpp"
	@echo "make lint   clang-format and clang-tidy"
	@echo "make fuzz   every fuzzer for 60 s"
	@echo "make cuda   compile the CUDA kernels, forward and quantizer (needs no GPU)"
	@echo "make test-gpu   the same, and run their tests (needs a GPU and PyTorch's CUDA libraries)"
	@echo "make bench-gpu  time the linears beside their peers on a GPU; BENCH_FLAGS: see bench.py --help"
	@echo "make wheel  build the Python client's wheel into build/wheel"
	@echo "make clean  remove build/"

deps:
	@docker/install-deps

build: deps
	cmake --preset cpu
	cmake --build --preset cpu -j $(JOBS)

demo: build
	@docker/install-deps --with-smollm2
	client/demo/demo.sh

test: build
	ctest --preset cpu

bench: build
	@docker/install-deps --with-smollm2
	tests/bench/engine/bench.sh

lint: deps
	cmake --preset lint > /dev/null
	cmake --build --preset lint
	docker/lint

fuzz: deps
	docker/fuzz

cuda:
	@docker/install-deps --with-cuda
	docker/build-cuda

test-gpu: cuda
	ctest --preset cuda

bench-gpu: cuda
	tests/bench/gpu/bench.py --out build/bench-gpu.md $(BENCH_FLAGS)

wheel: deps
	client/python/make-wheel build/wheel

clean:
	rm -rf build
