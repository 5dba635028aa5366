#!/bin/sh
# gguf 0.19.0, the newest of PyPI on 28 November 2026, beside ggml 0.28.0 (crate llama-cpp-sys-4 0.11.0): the package's enumeration of tensor
# types ends at Q1_0 (41), ggml's goes on with Q2_0 (42) and F8_E4M3 (43). One such tensor keeps GGUFReader from reading anything
# of the file: its metadata, and the tensors of known types as well. The message names a number and no tensor. Of Q1_0 the package knows the
# size, but dequantize() is not there. A tool that only wants a header must read it itself, or know the sizes of types from ggml.
#
# Seen: "ggml: known f32, newer q2_0 of 18 bytes", "gguf: ValueError: np.uint32(42) is not a valid GGMLQuantizationType", "gguf: no dequantize for Q1_0".
# Needs cargo, cmake, a C++ compiler and python3 with venv; builds a part of ggml, which takes half a minute.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install gguf==0.19.0 numpy==2.3.5

printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[lib]\npath = "lib.rs"\n[dependencies]\nllama-cpp-sys-4 = "=0.11.0"\n' >Cargo.toml
: >lib.rs
manifest=$(cargo metadata --quiet --format-version 1 | grep -o '"manifest_path":"[^"]*/llama-cpp-sys-4-0.11.0/Cargo.toml"' | sed 's/.*:"//; s/"$//')
cp -r "$(dirname "$manifest")/llama.cpp/ggml" ggml
: >ggml/ggml.pc.in # the crate has it not, and nothing is installed here
if ! { cmake -S ggml -B build -DGGML_CPU=OFF -DGGML_CCACHE=OFF -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF &&
    cmake --build build --target ggml-base; } >log 2>&1; then
    cat log
    exit 1
fi

# Two tensors: 64 values each, one of F32, one of Q2_0 (a block of 64: a scale and 16 bytes).
cat >write.py <<'END'
import struct
def text(value): return struct.pack("<Q", len(value)) + value
header = b"GGUF" + struct.pack("<IQQ", 3, 2, 1) + text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
for name, kind, offset in ((b"known", 0, 0), (b"newer", 42, 256)):
    header += text(name) + struct.pack("<IQIQ", 1, 64, kind, offset)
header += bytes(-len(header) % 32)
open("model.gguf", "wb").write(header + bytes(256) + bytes(18) + bytes(14))
END
python3 write.py

cat >read.cpp <<'END'
#include "ggml.h"
#include "gguf.h"
#include <cstdio>
int main() {
    gguf_context * file = gguf_init_from_file("model.gguf", { true, nullptr });
    if (!file || gguf_get_n_tensors(file) != 2) {
        return 1;
    }
    printf("ggml: %s %s, ", gguf_get_tensor_name(file, 0), ggml_type_name(gguf_get_tensor_type(file, 0)));
    printf("%s %s of %zu bytes\n", gguf_get_tensor_name(file, 1), ggml_type_name(gguf_get_tensor_type(file, 1)), gguf_get_tensor_size(file, 1));
    gguf_free(file);
}
END
library=$(find build -name 'libggml-base.so' | head -1)
c++ -std=c++17 -I ggml/include -o read read.cpp "$library" -Wl,-rpath,"$PWD/$(dirname "$library")"

cat >read.py <<'END'
import gguf, numpy
try:
    gguf.GGUFReader("model.gguf")
except ValueError as error:
    print(f"gguf: ValueError: {error}")
try:
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q1_0][1]
    gguf.dequantize(numpy.zeros((1, size), numpy.uint8), gguf.GGMLQuantizationType.Q1_0)
except NotImplementedError:
    print("gguf: no dequantize for Q1_0")
END
{ ./read; venv/bin/python read.py; } | tee printed

cmp - printed <<'END'
ggml: known f32, newer q2_0 of 18 bytes
gguf: ValueError: np.uint32(42) is not a valid GGMLQuantizationType
gguf: no dequantize for Q1_0
END
