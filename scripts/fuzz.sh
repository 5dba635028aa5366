#!/bin/sh
# Fuzzes what reads model files for FUZZ_SECONDS (3600), guided by coverage, and adds what reaches new code to tests/corpus/gguf.
# An input that fails is left in build/fuzz, and the status is not 0.
set -eu
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-3600}
mkdir -p build/fuzz/new tests/corpus/gguf
# The instrumentation is the compiler's own, so any toolchain will do.
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
# Not --locked: the lock file follows that of the library.
RUSTFLAGS="$flags" cargo build --release --manifest-path fuzz/Cargo.toml --target-dir build/fuzz/target \
	--target "$(rustc -vV | sed -n 's/^host: //p')"
program=$(ls build/fuzz/target/*/release/gguf)
"$program" -max_total_time="$seconds" -max_len=600 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	-artifact_prefix=build/fuzz/ build/fuzz/new tests/corpus/gguf
"$program" -merge=1 -max_len=600 tests/corpus/gguf build/fuzz/new
