// A device of type GPU for machines without one: preloaded into a program, it registers itself with ggml.
//
// Its memory is not the host's, as far as anyone can tell: buffers say so, and nothing may be read through their
// tensors' addresses. It computes with the CPU's kernels, so results are those of the CPU bit for bit. Copies are made
// as late as they may be, when someone waits for them: a source that is given back too early shows. What some backends
// lack (memset_tensor), it lacks, too. Behind an expert that many tokens use it wants numbers, as CUDA's kernels do.
//
//   HYPURA_TEST_GPU_COUNT        how many of them there are, 1 or 2
//   HYPURA_TEST_GPU_BYTES        how much memory each has (default 4 GiB)
//   HYPURA_TEST_GPU_TAKEN        a file: as many bytes as it has are taken by another process
//   HYPURA_TEST_GPU_PADDING      a file: as many bytes as it has are wanted behind the result of a multiplication
//   HYPURA_TEST_GPU_PINS         set: it has host memory of its own
//   HYPURA_TEST_GPU_CUTS         a file that loses its second half when the device first computes

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <vector>

namespace {

size_t setting(const char * name, size_t otherwise) {
    const char * value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}

size_t total_bytes() { return setting("HYPURA_TEST_GPU_BYTES", size_t(4) << 30); }

// what one device has
struct device_state {
    const char * name;
    std::atomic<size_t> used_bytes = 0;
    ggml_backend_device device = {};
    ggml_backend_buffer_type buffer_type = {};
};

device_state & state_of(ggml_backend_dev_t dev) { return *(device_state *) dev->context; }

size_t file_bytes(const char * name) {
    const char * path = getenv(name);
    std::error_code none;
    const auto bytes = path ? std::filesystem::file_size(path, none) : 0;
    return none ? 0 : bytes;
}

size_t free_bytes(const device_state & state) {
    const size_t not_free = state.used_bytes + file_bytes("HYPURA_TEST_GPU_TAKEN");
    return total_bytes() - std::min(total_bytes(), not_free);
}

void cut_file() {
    static bool is_done = false;
    const char * path = getenv("HYPURA_TEST_GPU_CUTS");
    if (path && !is_done) {
        const auto size = std::filesystem::file_size(path);
        std::filesystem::resize_file(path, size / 2);
    }
    is_done = true;
}

// buffers

struct buffer_context {
    device_state & state;
    char * base;
    size_t size;
};

char * at(const ggml_tensor * t, size_t offset) { return (char *) t->data + offset; }

ggml_backend_buffer_i make_buffer_interface() {
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = [](ggml_backend_buffer_t b) {
        auto * ctx = (buffer_context *) b->context;
        ctx->state.used_bytes -= ctx->size;
        free(ctx->base);
        delete ctx;
    };
    iface.get_base = [](ggml_backend_buffer_t b) { return (void *) ((buffer_context *) b->context)->base; };
    iface.set_tensor = [](ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
        memcpy(at(t, offset), data, size);
    };
    iface.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
        memcpy(data, at(t, offset), size);
    };
    iface.clear = [](ggml_backend_buffer_t b, uint8_t value) {
        memset(((buffer_context *) b->context)->base, value, b->size);
    };
    return iface;
}

ggml_backend_buffer_type make_buffer_type(device_state & state) {
    ggml_backend_buffer_type type = {};
    type.iface.get_name = [](ggml_backend_buffer_type_t buft) { return state_of(buft->device).name; };
    type.iface.alloc_buffer = [](ggml_backend_buffer_type_t buft, size_t size) -> ggml_backend_buffer_t {
        device_state & state = state_of(buft->device);
        if (size > free_bytes(state)) {
            fprintf(stderr, "test device: out of memory\n");
            return nullptr;
        }
        void * base = nullptr;
        if (posix_memalign(&base, 4096, std::max<size_t>(size, 1)) != 0) {
            return nullptr;
        }
        memset(base, 0xff, size); // NaN in every type of number
        state.used_bytes += size;
        return ggml_backend_buffer_init(
                buft, make_buffer_interface(), new buffer_context { state, (char *) base, size }, size);
    };
    type.iface.get_alloc_size = [](ggml_backend_buffer_type_t, const ggml_tensor * t) {
        return ggml_nbytes(t) + (t->op == GGML_OP_MUL_MAT ? file_bytes("HYPURA_TEST_GPU_PADDING") : 0);
    };
    type.iface.get_alignment = [](ggml_backend_buffer_type_t) { return size_t(128); };
    type.device = &state.device;
    return type;
}

// the backend

struct backend_context {
    ggml_backend_t cpu;
    std::vector<std::function<void()>> pending;

    void finish() {
        for (const auto & copy : pending) {
            copy();
        }
        pending.clear();
    }
};

backend_context & context(ggml_backend_t backend) { return *(backend_context *) backend->context; }

// CUDA's kernels for more than 8 tokens read on behind an expert and multiply that by zero, which makes nothing of
// numbers, but NaN of NaN.
constexpr size_t READ_BEHIND_BYTES = 512;
constexpr int64_t MAX_EXACT_TOKENS = 8;

bool is_followed_by_numbers(const ggml_tensor * weight, int32_t expert) {
    const size_t type_size = ggml_type_size(weight->type);
    const size_t size = std::min(weight->nb[2], READ_BEHIND_BYTES) / type_size * type_size;
    return expert + 1 == weight->ne[2]
            || ggml_validate_row_data(weight->type, at(weight, (expert + 1) * weight->nb[2]), size);
}

bool are_followed_by_numbers(const ggml_tensor * node) {
    const ggml_tensor * ids = node->src[2];
    for (int64_t token = 0; token < ids->ne[1]; ++token) {
        for (int64_t choice = 0; choice < ids->ne[0]; ++choice) {
            const int32_t expert = *(const int32_t *) at(ids, token * ids->nb[1] + choice * ids->nb[0]);
            if (!is_followed_by_numbers(node->src[0], expert)) {
                fprintf(stderr, "test device: behind expert %d of %s are no numbers\n", expert, node->src[0]->name);
                return false;
            }
        }
    }
    return true;
}

// what the experts are is known when the nodes before are computed
ggml_status compute(ggml_backend_t cpu, ggml_cgraph * graph) {
    int done = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        if (graph->nodes[i]->op != GGML_OP_MUL_MAT_ID || graph->nodes[i]->ne[2] <= MAX_EXACT_TOKENS) {
            continue;
        }
        ggml_cgraph before = ggml_graph_view(graph, done, i);
        const ggml_status status = ggml_backend_graph_compute(cpu, &before);
        if (status != GGML_STATUS_SUCCESS || !are_followed_by_numbers(graph->nodes[i])) {
            return status != GGML_STATUS_SUCCESS ? status : GGML_STATUS_FAILED;
        }
        done = i;
    }
    ggml_cgraph rest = ggml_graph_view(graph, done, graph->n_nodes);
    return ggml_backend_graph_compute(cpu, &rest);
}

ggml_backend_i make_backend_interface() {
    ggml_backend_i iface = {};
    iface.get_name = [](ggml_backend_t b) { return state_of(b->device).name; };
    iface.free = [](ggml_backend_t b) {
        ggml_backend_free(context(b).cpu);
        delete &context(b);
        delete b;
    };
    iface.set_tensor_async = [](ggml_backend_t b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
        char * to = at(t, offset);
        context(b).pending.push_back([=] { memcpy(to, data, size); });
    };
    iface.get_tensor_async = [](ggml_backend_t b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
        const char * from = at(t, offset);
        context(b).pending.push_back([=] { memcpy(data, from, size); });
    };
    iface.cpy_tensor_async = [](ggml_backend_t from, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
        if (from != to) {
            return false;
        }
        const char * source = at(src, 0);
        char * destination = at(dst, 0);
        const size_t size = ggml_nbytes(src);
        context(to).pending.push_back([=] { memcpy(destination, source, size); });
        return true;
    };
    iface.synchronize = [](ggml_backend_t b) { context(b).finish(); };
    iface.graph_compute = [](ggml_backend_t b, ggml_cgraph * graph) {
        context(b).finish();
        cut_file();
        return compute(context(b).cpu, graph);
    };
    return iface;
}

ggml_guid_t guid() {
    static ggml_guid guid = { 0x74, 0x65, 0x73, 0x74, 0x67, 0x70, 0x75, 0x21, 0x9b, 0x10, 0x42, 0xc7, 0x5e, 0x33, 0x08,
        0xd1 };
    return &guid;
}

// the device

int64_t batch_size(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return 0;
        case GGML_OP_MUL_MAT: return op->ne[1];
        case GGML_OP_MUL_MAT_ID: return op->ne[2];
        default: return ggml_nrows(op);
    }
}

ggml_backend_device_i make_device_interface() {
    ggml_backend_device_i iface = {};
    iface.get_name = [](ggml_backend_dev_t dev) { return state_of(dev).name; };
    iface.get_description = [](ggml_backend_dev_t) { return "the CPU in the guise of a GPU"; };
    iface.get_memory = [](ggml_backend_dev_t dev, size_t * free, size_t * total) {
        *free = free_bytes(state_of(dev));
        *total = total_bytes();
    };
    iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    iface.get_props = [](ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
        *props = {};
        props->name = dev->iface.get_name(dev);
        props->description = dev->iface.get_description(dev);
        props->type = dev->iface.get_type(dev);
        dev->iface.get_memory(dev, &props->memory_free, &props->memory_total);
        props->caps.async = true;
    };
    iface.init_backend = [](ggml_backend_dev_t dev, const char *) {
        ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
        return new ggml_backend { guid(), make_backend_interface(), dev, new backend_context { cpu, {} } };
    };
    iface.get_buffer_type = [](ggml_backend_dev_t dev) { return &state_of(dev).buffer_type; };
    iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor * op) {
        return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
    };
    iface.supports_buft = [](ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
        return buft == &state_of(dev).buffer_type;
    };
    iface.offload_op = [](ggml_backend_dev_t, const ggml_tensor * op) { return batch_size(op) >= 32; };
    iface.get_host_buffer_type = [](ggml_backend_dev_t) -> ggml_backend_buffer_type_t {
        return getenv("HYPURA_TEST_GPU_PINS") ? ggml_backend_cpu_buffer_type() : nullptr;
    };
    return iface;
}

void set_n_threads(ggml_backend_t backend, int n_threads) {
    ggml_backend_t cpu = context(backend).cpu;
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu));
    ((ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"))(
            cpu, n_threads);
}

ggml_backend_dev_t device(size_t index);

ggml_backend_reg_t registry() {
    static ggml_backend_reg reg = [] {
        ggml_backend_reg reg = {};
        reg.api_version = GGML_BACKEND_API_VERSION;
        reg.iface.get_name = [](ggml_backend_reg_t) { return "TestGPU"; };
        reg.iface.get_device_count = [](ggml_backend_reg_t) { return setting("HYPURA_TEST_GPU_COUNT", 1); };
        reg.iface.get_device = [](ggml_backend_reg_t, size_t index) { return device(index); };
        reg.iface.get_proc_address = [](ggml_backend_reg_t, const char * name) {
            return strcmp(name, "ggml_backend_set_n_threads") == 0 ? (void *) set_n_threads : nullptr;
        };
        return reg;
    }();
    return &reg;
}

ggml_backend_dev_t device(size_t index) {
    static device_state * states = [] {
        static device_state states[] = { { "TestGPU" }, { "TestGPU1" } };
        for (device_state & state : states) {
            state.device = { make_device_interface(), registry(), &state };
            state.buffer_type = make_buffer_type(state);
        }
        return states;
    }();
    return &states[index].device;
}

__attribute__((constructor)) void register_device() { ggml_backend_register(registry()); }

} // namespace
