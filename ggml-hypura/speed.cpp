// Measures how fast this machine multiplies with weights of a type, with the very kernels and threads that will compute: what a
// prediction of a model's speed rests on. libhypura keeps the figures, so this happens once per machine.

#include "model.h"

#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace {

// more than a core's own caches hold
constexpr size_t WEIGHT_BYTES = 64u << 20;

// elements of a row; a multiple of every type's block
constexpr int64_t ROW_LENGTH = 4096;

// the fastest counts: others were disturbed
constexpr int PASSES = 4;

// bytes per second of one row times a matrix of this type; 0 if that cannot be measured
double measure(ggml_backend_t cpu, ggml_type type) {
    const int64_t n_rows = WEIGHT_BYTES/ggml_row_size(type, ROW_LENGTH);
    ggml_init_params params = {
        /* .mem_size   = */ 8*ggml_tensor_overhead() + ggml_graph_overhead(),
        /* .mem_buffer = */ nullptr,
        /* .no_alloc   = */ true,
    };
    ggml_context * ctx = ggml_init(params);
    ggml_tensor * weight = ggml_new_tensor_2d(ctx, type, ROW_LENGTH, n_rows);
    ggml_tensor * input  = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, ROW_LENGTH);
    ggml_tensor * output = ggml_mul_mat(ctx, weight, input);
    ggml_cgraph * graph  = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, output);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, cpu);

    double best = 0;
    if (buffer && ggml_backend_supports_op(cpu, output)) {
        // ordinary numbers in every type
        memset(weight->data, 0x11, ggml_nbytes(weight));
        memset(input->data, 0x11, ggml_nbytes(input));
        for (int i = 0; i < PASSES; ++i) {
            const auto start = std::chrono::steady_clock::now();
            if (ggml_backend_graph_compute(cpu, graph) != GGML_STATUS_SUCCESS) {
                break;
            }
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
            best = std::max(best, ggml_nbytes(weight)/elapsed.count());
        }
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return best;
}

} // namespace

void ggml_hypura_measure_speeds(ggml_backend_t cpu, int n_threads, const ggml_hypura_model & model) {
    uint32_t type;
    while (hypura_model_next_unmeasured(model.handle, n_threads, WEIGHT_BYTES, &type)) {
        hypura_model_set_speed(model.handle, type, n_threads, type < GGML_TYPE_COUNT ? measure(cpu, (ggml_type) type) : 0);
    }
}
