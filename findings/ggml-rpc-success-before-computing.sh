#!/bin/sh
# ggml 0.26.0 (crate llama-cpp-sys-2 0.1.161), RPC backend: ggml_backend_graph_compute(), which waits for other backends, and
# ggml_backend_synchronize() return as soon as the request is in the socket. GGML_STATUS_SUCCESS says nothing of the server: here its process
# is stopped throughout. Neither do the two calls take the time of the computation, so they cannot be used to measure it. Only
# reading a tensor waits for the server. Whoever acts on the status, or times a device this way, must read something first.
#
# Seen: "server stopped: compute says 0 (success), synchronize returned", "server continued: 2 * 3 = 6".
# Needs cargo, cmake and a C++ compiler; builds ggml, which takes a minute or two.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[lib]\npath = "lib.rs"\n[dependencies]\nllama-cpp-sys-2 = "=0.1.161"\n' >Cargo.toml
: >lib.rs
manifest=$(cargo metadata --quiet --format-version 1 | grep -o '"manifest_path":"[^"]*/llama-cpp-sys-2-0.1.161/Cargo.toml"' | sed 's/.*:"//; s/"$//')
cp -r "$(dirname "$manifest")/llama.cpp/ggml" ggml
: >ggml/ggml.pc.in # the crate has it not, and nothing is installed here

cat >stopped.cpp <<'END'
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "ggml.h"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char ** argv) {
    const std::string endpoint = std::string("127.0.0.1:") + argv[argc - 1];
    const pid_t server = fork();
    if (server == 0) {
        freopen("/dev/null", "w", stdout);
        ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        ggml_backend_rpc_start_server(endpoint.c_str(), nullptr, 1, 1, &cpu);
        _exit(1);
    }
    sleep(2); // until it listens
    ggml_backend_t remote = ggml_backend_rpc_init(endpoint.c_str(), 0);
    ggml_context * ctx = ggml_init({ 16*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true });
    ggml_tensor * a = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    ggml_tensor * b = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    ggml_tensor * product = ggml_mul(ctx, a, b);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, product);
    ggml_backend_alloc_ctx_tensors(ctx, remote);
    const float two = 2, three = 3;
    float result = 0;
    ggml_backend_tensor_set(a, &two, 0, sizeof(two));
    ggml_backend_tensor_set(b, &three, 0, sizeof(three));
    ggml_backend_tensor_get(a, &result, 0, sizeof(result)); // what was sent has arrived

    kill(server, SIGSTOP);
    waitpid(server, nullptr, WUNTRACED); // it is stopped
    const int status = ggml_backend_graph_compute(remote, graph);
    ggml_backend_synchronize(remote);
    printf("server stopped: compute says %d (%s), synchronize returned\n", status, status == GGML_STATUS_SUCCESS ? "success" : "failure");
    fflush(stdout);
    kill(server, SIGCONT);
    ggml_backend_tensor_get(product, &result, 0, sizeof(result));
    printf("server continued: 2 * 3 = %g\n", result);
    fflush(stdout);
    kill(server, SIGKILL);
    _exit(0);
}
END

cmake -S ggml -B build -DCMAKE_BUILD_TYPE=None -DGGML_RPC=ON -DGGML_RPC_RDMA=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF \
    -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF >log 2>&1 || { cat log; exit 1; }
cmake --build build -j "$(nproc)" --target ggml ggml-rpc ggml-cpu >log 2>&1 || { tail -n 20 log; exit 1; }
libraries=$(dirname "$(find build -name 'libggml-base.so' | head -n 1)")
rpc=$(dirname "$(find build -name 'libggml-rpc.so' | head -n 1)")
c++ -std=c++17 -I ggml/include -o stopped stopped.cpp -L "$libraries" -L "$rpc" -lggml -lggml-base -lggml-rpc \
    "-Wl,-rpath,$PWD/$libraries,-rpath,$PWD/$rpc"

./stopped "$((20000 + $$ % 20000))" 2>/dev/null | tee printed
grep -qx 'server stopped: compute says 0 (success), synchronize returned' printed
grep -qx 'server continued: 2 \* 3 = 6' printed
