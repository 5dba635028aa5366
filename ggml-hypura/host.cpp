// Whether the ggml that has loaded this backend is the one that it was compiled for: the version, if it is compiled apart from
// ggml (HYPURA_GGML_VERSION), and the sizes and numbers that both sides use. ggml itself compares GGML_BACKEND_API_VERSION, which
// stands for the interfaces' structs.

#include "model.h"

#include "ggml-impl.h"

#include <cstring>

namespace {

constexpr size_t GRAPH_SIZE = 11;

std::string differs(const std::string & what, const std::string & here, const std::string & there) {
    return what + " is " + here + " in this backend, but " + there + " in the ggml that loads it";
}

std::string differs(const std::string & what, size_t here, size_t there) {
    return differs(what, std::to_string(here), std::to_string(there));
}

// The number that an operation has in the ggml that is loaded. It is searched from below, where there are operations in any version.
int number_of(const char * op_name) {
    int op = 0;
    while (op < GGML_OP_COUNT && strcmp(ggml_op_name((ggml_op) op), op_name) != 0) {
        op++;
    }
    return op;
}

} // namespace

std::string hypura_host_mismatch() {
#ifdef HYPURA_GGML_VERSION
    // what follows a dash tells of local changes
    const std::string version = ggml_version();
    if (version.substr(0, version.find('-')) != HYPURA_GGML_VERSION) {
        return differs("the version", HYPURA_GGML_VERSION, version);
    }
#endif

    const struct { ggml_op op; const char * name; } ops[] = {
        { GGML_OP_NONE,       "NONE"       },
        { GGML_OP_MUL_MAT,    "MUL_MAT"    },
        { GGML_OP_MUL_MAT_ID, "MUL_MAT_ID" },
        { GGML_OP_RESHAPE,    "RESHAPE"    },
        { GGML_OP_VIEW,       "VIEW"       },
        { GGML_OP_PERMUTE,    "PERMUTE"    },
        { GGML_OP_TRANSPOSE,  "TRANSPOSE"  },
        { GGML_OP_GLU,        "GLU"        },
    };
    for (const auto & expected : ops) {
        const int number = number_of(expected.name);
        if (number != expected.op) {
            return differs(std::string("the number of ") + expected.name, expected.op, number);
        }
    }

    // in a context, every tensor is preceded by an entry, and a graph is followed by its nodes
    ggml_init_params params = {
        /* .mem_size   = */ 2*ggml_tensor_overhead() + ggml_graph_overhead_custom(GRAPH_SIZE, false),
        /* .mem_buffer = */ nullptr,
        /* .no_alloc   = */ true,
    };
    ggml_context * ctx = ggml_init(params);
    const char * first  = (const char *) ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    const char * second = (const char *) ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    const size_t entry_size  = first - (const char *) ggml_get_mem_buffer(ctx);
    const size_t tensor_size = second - first - entry_size;
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, GRAPH_SIZE, false);
    const size_t graph_size = (const char *) ggml_graph_nodes(graph) - (const char *) graph;
    ggml_free(ctx);

    if (tensor_size != GGML_TENSOR_SIZE) {
        return differs("the size of ggml_tensor", GGML_TENSOR_SIZE, tensor_size);
    }
    if (graph_size != sizeof(ggml_cgraph)) {
        return differs("the size of ggml_cgraph", sizeof(ggml_cgraph), graph_size);
    }
    return {};
}
