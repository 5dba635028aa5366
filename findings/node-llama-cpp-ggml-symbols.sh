#!/bin/sh
# node-llama-cpp 3.22.1 (npm, prebuilt addon for Linux x64, ggml 0.25.1): a library named by GGML_BACKEND_PATH is loaded, but sees none
# of ggml's functions, although the addon's libggml-base.so is in the process: the addon's libraries are opened locally, and
# libggml-base.so has an SONAME without a version, so that one that was linked against libggml-base.so.0 does not find it either.
# A backend that is linked in the usual way therefore fails with an undefined symbol in this host, and works in llama.cpp's programs.
#
# Seen: "SONAME libggml-base.so", "loaded", "ggml_backend_reg_by_name: not visible".
# Needs node, npm, cc and readelf.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

cat >package.json <<'END'
{ "private": true, "type": "module", "dependencies": { "@node-llama-cpp/linux-x64": "3.22.1", "node-llama-cpp": "3.22.1" } }
END
npm install --omit=optional --ignore-scripts --no-audit --no-fund --silent

base=$(find node_modules/@node-llama-cpp/linux-x64 -name 'libggml-base.so*' | head -n 1)
soname=$(readelf -d "$base" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
echo "SONAME $soname"

# Says when it is loaded what the process shows it. It offers no backend, which ggml says and goes on without.
cat >probe.c <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
__attribute__((constructor)) static void say(void) {
    fprintf(stderr, "loaded\n");
    fprintf(stderr, "ggml_backend_reg_by_name: %s\n", dlsym(RTLD_DEFAULT, "ggml_backend_reg_by_name") ? "visible" : "not visible");
}
END
cc -shared -fPIC -o libggml-probe.so probe.c -ldl

cat >host.mjs <<'END'
import { getLlama } from "node-llama-cpp";
const llama = await getLlama({ build: "never", gpu: false, logLevel: "error" });
await llama.dispose();
END
GGML_BACKEND_PATH=$scratch/libggml-probe.so node host.mjs >printed 2>&1
grep -e '^loaded$' -e '^ggml_backend_reg_by_name' printed

[ "$soname" = libggml-base.so ]
grep -qx loaded printed
grep -qx 'ggml_backend_reg_by_name: not visible' printed
