// Measures how fast this machine multiplies with weights of a type, with the very kernels and threads that will
// compute: what a prediction of a model's speed rests on. libhypura keeps the figures of CPUs, so that happens once per
// machine; a GPU takes milliseconds.

#include "model.h"

#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace {

// more than a core's own caches hold
constexpr size_t WEIGHT_BYTES = 64u << 20;

// about what experts have
constexpr size_t UPLOAD_BYTES = 8u << 20;

// elements of a row; a multiple of every type's block
constexpr int64_t ROW_LENGTH = 4096;

// the fastest counts: others were disturbed
constexpr int PASSES = 4;

// the least seconds that a task takes; 0 if it fails
template <typename task_t> double least_seconds(task_t task) {
    double best = 0;
    for (int i = 0; i < PASSES; ++i) {
        const auto start = std::chrono::steady_clock::now();
        if (!task()) {
            break;
        }
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        best = i == 0 ? elapsed.count() : std::min(best, elapsed.count());
    }
    return best;
}

// bytes per second of one row times a matrix of this type; 0 if that cannot be measured. With a place for it also the
// seconds until the least answer of the backend is there, which do not count then.
double measure(ggml_backend_t backend, ggml_type type, double * answer_seconds = nullptr) {
    const int64_t n_rows = WEIGHT_BYTES / ggml_row_size(type, ROW_LENGTH);
    ggml_init_params params = {
        /* .mem_size   = */ 8 * ggml_tensor_overhead() + ggml_graph_overhead(),
        /* .mem_buffer = */ nullptr,
        /* .no_alloc   = */ true,
    };
    ggml_context * ctx = ggml_init(params);
    ggml_tensor * weight = ggml_new_tensor_2d(ctx, type, ROW_LENGTH, n_rows);
    ggml_tensor * input = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, ROW_LENGTH);
    ggml_tensor * output = ggml_mul_mat(ctx, weight, input);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, output);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);

    double seconds = 0;
    if (buffer && ggml_backend_supports_op(backend, output)) {
        // ordinary numbers in every type; not every backend can do that to one tensor
        ggml_backend_buffer_clear(buffer, 0x11);
        float first = 0;
        // what is sent to another machine is done when it answers
        const auto answer = [&] {
            ggml_backend_tensor_get(output, &first, 0, sizeof(first));
            return true;
        };
        seconds = least_seconds(
                [&] { return ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS && answer(); });
        if (answer_seconds) {
            *answer_seconds = least_seconds(answer);
            seconds = std::max(seconds - *answer_seconds, 0.0);
        }
    }
    const double speed = seconds > 0 ? ggml_nbytes(weight) / seconds : 0;
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return speed;
}

// bytes per second from memory that the device's driver hands out, as slots lie in, to the device; 0 if that cannot be
// measured
double measure_upload(ggml_backend_t backend, ggml_backend_buffer_type_t host_buft) {
    ggml_init_params params = {
        /* .mem_size   = */ ggml_tensor_overhead(),
        /* .mem_buffer = */ nullptr,
        /* .no_alloc   = */ true,
    };
    ggml_context * ctx = ggml_init(params);
    ggml_tensor * copy = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, UPLOAD_BYTES);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
    ggml_backend_buffer_t host = ggml_backend_buft_alloc_buffer(host_buft, UPLOAD_BYTES);

    double seconds = 0;
    if (buffer && host) {
        ggml_backend_buffer_clear(host, 0x11);
        seconds = least_seconds([&] {
            ggml_backend_tensor_set_async(backend, copy, ggml_backend_buffer_get_base(host), 0, UPLOAD_BYTES);
            ggml_backend_synchronize(backend);
            return true;
        });
    }
    ggml_backend_buffer_free(host);
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return seconds > 0 ? UPLOAD_BYTES / seconds : 0;
}

} // namespace

// Whether a device has memory to spare for a measurement. Kernels take some, too.
static bool has_room(ggml_backend_dev_t dev) {
    size_t free = 0;
    size_t total = 0;
    ggml_backend_dev_memory(dev, &free, &total);
    return free >= 4 * WEIGHT_BYTES;
}

void ggml_hypura_measure_gpu(ggml_backend_dev_t dev, ggml_backend_buffer_type_t host_buft, const ggml_tensor * weight,
        const ggml_hypura_model & model) {
    ggml_backend_t backend = has_room(dev) ? ggml_backend_dev_init(dev, nullptr) : nullptr;
    if (!backend) {
        return;
    }
    hypura_copy_set_speed(model.handle, measure(backend, weight->type), measure_upload(backend, host_buft));
    ggml_backend_free(backend);
}

void ggml_hypura_measure_remote(ggml_backend_dev_t dev, ggml_type type, ggml_hypura_model & model) {
    if (model.has_remote.exchange(true)) {
        return;
    }
    ggml_backend_t backend = has_room(dev) ? ggml_backend_dev_init(dev, nullptr) : nullptr;
    if (!backend) {
        return;
    }
    double answer_seconds = 0;
    const double speed = measure(backend, type, &answer_seconds);
    hypura_model_set_remote_speed(model.handle, speed, answer_seconds);
    ggml_backend_free(backend);
}

void ggml_hypura_measure_speeds(ggml_backend_t cpu, int n_threads, const ggml_hypura_model & model) {
    uint32_t type;
    while (hypura_model_next_unmeasured(model.handle, n_threads, WEIGHT_BYTES, &type)) {
        hypura_model_set_speed(
                model.handle, type, n_threads, type < GGML_TYPE_COUNT ? measure(cpu, (ggml_type) type) : 0);
    }
}
