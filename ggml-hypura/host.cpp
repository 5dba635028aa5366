// Whether the ggml that has loaded this backend is, in all that this backend was compiled with, the one that it was
// compiled for: where the fields of its structs are, and the numbers of its operations, types and flags. If they are
// the same, code compiled with the headers of either is the same, whatever the versions are called. ggml itself
// compares GGML_BACKEND_API_VERSION, which stands for the order of functions within interfaces; that they have grown
// (as ggml_backend_buffer_i did in 0.28) does not change that number.

#include "model.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <cstddef>
#include <cstring>

namespace {

constexpr size_t GRAPH_SIZE = 11;

std::string differs(const std::string & what, size_t here, size_t there) {
    return what + " is " + std::to_string(here) + " in this backend, but " + std::to_string(there)
            + " in the ggml that loads it";
}

// The number that an operation has in the ggml that is loaded. It is searched from below, where there are operations in
// any version.
int number_of(const char * op_name) {
    int op = 0;
    while (op < GGML_OP_COUNT && strcmp(ggml_op_name((ggml_op) op), op_name) != 0) {
        op++;
    }
    return op;
}

std::string check_numbers() {
    const struct {
        ggml_op op;
        const char * name;
    } ops[] = {
        { GGML_OP_NONE, "NONE" },
        { GGML_OP_MUL_MAT, "MUL_MAT" },
        { GGML_OP_MUL_MAT_ID, "MUL_MAT_ID" },
        { GGML_OP_RESHAPE, "RESHAPE" },
        { GGML_OP_VIEW, "VIEW" },
        { GGML_OP_PERMUTE, "PERMUTE" },
        { GGML_OP_TRANSPOSE, "TRANSPOSE" },
        { GGML_OP_GLU, "GLU" },
    };
    for (const auto & expected : ops) {
        const int number = number_of(expected.name);
        if (number != expected.op) {
            return differs(std::string("the number of ") + expected.name, expected.op, number);
        }
    }
    // types are numbered as in GGUF files; these two are named here, the others come from the file
    const struct {
        ggml_type type;
        const char * name;
    } types[] = { { GGML_TYPE_F32, "f32" }, { GGML_TYPE_I32, "i32" } };
    for (const auto & expected : types) {
        if (strcmp(ggml_type_name(expected.type), expected.name) != 0) {
            return std::string("type ") + std::to_string(expected.type) + " is " + expected.name
                    + " in this backend, but " + ggml_type_name(expected.type) + " in the ggml that loads it";
        }
    }
    return {};
}

// A struct of ggml's whose words are their own offsets: what a function of ggml reads from it tells where that function
// reads.
template <typename T> struct numbered_words {
    alignas(T) size_t words[8 * sizeof(T) / sizeof(size_t)];

    numbered_words() {
        for (size_t i = 0; i < sizeof(words) / sizeof(*words); ++i) {
            words[i] = i * sizeof(size_t);
        }
    }

    T * get() { return (T *) words; }
};

// The field behind an interface tells how large the interface is.
std::string check_interfaces() {
    numbered_words<ggml_backend_buffer_type> type;
    numbered_words<ggml_backend_buffer> buffer;
    numbered_words<ggml_backend> backend;
    numbered_words<ggml_backend_device> device;
    const struct {
        const char * what;
        size_t here;
        const void * there;
    } fields[] = {
        { "ggml_backend_buffer_type", offsetof(ggml_backend_buffer_type, device),
                ggml_backend_buft_get_device(type.get()) },
        { "ggml_backend_buffer", offsetof(ggml_backend_buffer, buft), ggml_backend_buffer_get_type(buffer.get()) },
        { "ggml_backend", offsetof(ggml_backend, device), ggml_backend_get_device(backend.get()) },
        { "ggml_backend_device", offsetof(ggml_backend_device, reg), ggml_backend_dev_backend_reg(device.get()) },
    };
    for (const auto & field : fields) {
        if ((size_t) field.there != field.here) {
            return differs(std::string("the size of the interface in ") + field.what, field.here, (size_t) field.there);
        }
    }
    if (ggml_threadpool_params_default(GRAPH_SIZE).n_threads != (int) GRAPH_SIZE) {
        return "ggml_threadpool_params has other fields in the ggml that loads this backend";
    }
    return {};
}

// sizes: in a context, every tensor is preceded by an entry, and a graph is followed by its nodes
std::string check_sizes(ggml_context * ctx) {
    const char * first = (const char *) ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    const char * second = (const char *) ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    const size_t entry_size = first - (const char *) ggml_get_mem_buffer(ctx);
    const size_t tensor_size = second - first - entry_size;
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, GRAPH_SIZE, false);
    const size_t graph_size = (const char *) ggml_graph_nodes(graph) - (const char *) graph;
    if (tensor_size != GGML_TENSOR_SIZE) {
        return differs("the size of ggml_tensor", GGML_TENSOR_SIZE, tensor_size);
    }
    if (graph_size != sizeof(ggml_cgraph)) {
        return differs("the size of ggml_cgraph", sizeof(ggml_cgraph), graph_size);
    }
    return {};
}

// fields: what ggml writes must be found where this backend reads
std::string check_fields(ggml_context * ctx) {
    ggml_tensor * weight = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 3, 5);
    ggml_tensor * input = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 3, 7);
    ggml_set_name(weight, "weight");
    ggml_tensor * view = ggml_view_1d(ctx, weight, 3, weight->nb[1]);
    ggml_tensor * node = ggml_mul_mat(ctx, weight, input);
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, GRAPH_SIZE, false);
    ggml_build_forward_expand(graph, node);
    const struct {
        const char * what;
        bool is_same;
    } fields[] = {
        { "ggml_tensor.ne", weight->ne[0] == 3 && weight->ne[1] == 5 && weight->ne[2] == 1 },
        { "ggml_tensor.nb", weight->nb[0] == sizeof(float) && weight->nb[1] == 3 * sizeof(float) },
        { "ggml_tensor.name", strcmp(weight->name, "weight") == 0 },
        { "ggml_tensor.view_src", view->view_src == weight && view->view_offs == weight->nb[1] },
        { "ggml_tensor.op", node->op == GGML_OP_MUL_MAT && node->type == GGML_TYPE_F32 },
        { "ggml_tensor.src", node->src[0] == weight && node->src[1] == input && !node->src[2] },
        { "ggml_tensor.data", ggml_get_data(node) == node->data && !node->buffer && !node->extra },
        { "ggml_tensor.flags",
                (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && (weight->flags & GGML_TENSOR_FLAG_COMPUTE) == 0 },
        { "ggml_cgraph.nodes", graph->n_nodes == 1 && graph->nodes[0] == node },
    };
    for (const auto & field : fields) {
        if (!field.is_same) {
            return std::string(field.what) + " is elsewhere in the ggml that loads this backend";
        }
    }
    return {};
}

std::string check_tensors() {
    ggml_init_params params = {
        /* .mem_size   = */ 16 * ggml_tensor_overhead() + 2 * ggml_graph_overhead_custom(GRAPH_SIZE, false),
        /* .mem_buffer = */ nullptr,
        /* .no_alloc   = */ true,
    };
    ggml_context * ctx = ggml_init(params);
    std::string reason = check_sizes(ctx);
    if (reason.empty()) {
        reason = check_fields(ctx);
    }
    ggml_free(ctx);
    return reason;
}

} // namespace

std::string ggml_hypura_host_mismatch() {
    for (auto check : { check_numbers, check_interfaces, check_tensors }) {
        const std::string reason = check();
        if (!reason.empty()) {
#ifdef HYPURA_GGML_VERSION
            return std::string("built with the headers of ggml " HYPURA_GGML_VERSION " and loaded by ggml ")
                    + ggml_version() + ": " + reason;
#else
            return reason;
#endif
        }
    }
    return {};
}
