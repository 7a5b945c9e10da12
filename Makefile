# SPDX-License-Identifier: MIT
# The two commands of a newcomer, on a fresh Debian 12 as root: `make demo` and `make test`.
BUILD := build/release
BINARY := $(BUILD)/src/daemon/vramswap

.PHONY: all build demo test test-release test-asan test-tsan test-clang micro deps test-deps clean

all: build

deps:
	tools/install_deps.sh build
test-deps:
	tools/install_deps.sh build test vm

build:
	cmake --preset release >/dev/null
	cmake --build --preset release --target vramswap

demo: deps build
	$(BINARY) demo

# Everything this machine can run; the release tests come last, so that their closing lines end the output. LIMIT=S: ended,
# as failed, after so many seconds.
test: test-deps
	tools/run_tests.py $(if $(LIMIT),--limit $(LIMIT)) clang asan tsan release

# One part: clang's thread-safety analysis of the product, as errors; model, unit and contract tests with AddressSanitizer
# and UndefinedBehaviorSanitizer, or with ThreadSanitizer; all tests without.
test-clang test-asan test-tsan test-release: test-%:
	tools/run_tests.py $*

# The hot functions beside a bare memcpy; wants a quiet machine.
micro:
	tools/install_deps.sh build bench
	cmake --preset release -DVRAMSWAP_BENCH=ON >/dev/null
	cmake --build --preset release --target micro
	bench/micro.py $(BUILD)/bench/micro

clean:
	rm -rf build
