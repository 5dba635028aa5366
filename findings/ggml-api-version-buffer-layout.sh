#!/bin/sh
# ggml 0.26.0 and 0.28.0 (crates llama-cpp-sys-2 0.1.161 and llama-cpp-sys-4 0.11.0): both say GGML_BACKEND_API_VERSION 3, which is all
# that ggml compares when it loads a backend, but their struct ggml_backend_buffer_i differs: 0.28 has three functions more
# (set_tensor_n, get_tensor_n, cpy_tensor_n) at its end, so that what follows it in ggml_backend_buffer (buft, context, size) lies
# elsewhere. A backend that was built against the one and makes buffers of its own passes the other's check, and has their fields read at
# the wrong places.
#
# Seen: "0.26.0: API 3, interface of 88 bytes, buft at 88" and "0.28.0: API 3, interface of 112 bytes, buft at 112".
# Needs cargo and a C compiler.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

cat >layout.c <<'END'
#include "ggml-backend-impl.h"
#include <stddef.h>
#include <stdio.h>
int main(void) {
    printf("API %d, interface of %zu bytes, buft at %zu\n", GGML_BACKEND_API_VERSION, sizeof(struct ggml_backend_buffer_i),
           offsetof(struct ggml_backend_buffer, buft));
}
END

# Cargo fetches the sources of one crate, and prints where its manifest is. Two of these cannot be in one project: both link llama.
sources() {
    printf '[package]\nname = "compare"\nversion = "0.0.0"\n[lib]\npath = "lib.rs"\n[dependencies]\n%s = "=%s"\n' "$1" "$2" >Cargo.toml
    rm -f Cargo.lock && : >lib.rs
    cargo metadata --quiet --format-version 1 | grep -o "\"manifest_path\":\"[^\"]*/$1-$2/Cargo.toml\"" | sed 's/.*:"//; s|/Cargo.toml"||'
}

print_layout() {
    tree=$(sources "$1" "$2")/llama.cpp/ggml
    version=$(sed -n 's/^set(GGML_VERSION_[A-Z]* \([0-9]*\)).*/\1/p' "$tree/CMakeLists.txt" | paste -s -d . -)
    cc -I "$tree/include" -I "$tree/src" -o layout layout.c
    echo "$version: $(./layout)"
}

{ print_layout llama-cpp-sys-2 0.1.161; print_layout llama-cpp-sys-4 0.11.0; } | tee printed

grep -qx '0.26.0: API 3, interface of 88 bytes, buft at 88' printed
grep -qx '0.28.0: API 3, interface of 112 bytes, buft at 112' printed
