// The backend: computes sub-graphs on weights that arrive while it computes.
//
// The maths is the CPU backend's own: every node is copied with its weight pointing at where libhypura put it, and given
// to an inner CPU backend, so results are the same bit for bit. A MUL_MAT_ID becomes one node per expert, each over the
// rows that the router sent there: the kernels choose by the number of rows of an expert, so rows of one expert are never
// split, and it stays a MUL_MAT_ID.

#include "model.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace {

// rows gathered for several experts at once may take this much
constexpr size_t MAX_GATHER_BYTES = 32u << 20;

// nodes of one inner graph
constexpr size_t MAX_NODES = 256;

struct fetch_deleter {
    void operator()(hypura_fetch_t * fetch) const { hypura_fetch_free(fetch); }
};
using fetch_ptr = std::unique_ptr<hypura_fetch_t, fetch_deleter>;

// where the router sent which row: token and choice
struct routed_row {
    int32_t choice;
    int32_t token;
};

// Collects nodes and gives them to the CPU backend.
class inner_graph {
public:
    inner_graph() {
        ggml_init_params params = {
            /* .mem_size   = */ ggml_graph_overhead_custom(MAX_NODES, false) + 4*MAX_NODES*ggml_tensor_overhead(),
            /* .mem_buffer = */ nullptr,
            /* .no_alloc   = */ true,
        };
        ctx = ggml_init(params);
        clear();
    }

    ~inner_graph() { ggml_free(ctx); }

    bool empty() const { return n_nodes == 0; }
    bool full()  const { return n_nodes == MAX_NODES; }

    // a copy that may be redirected
    ggml_tensor * copy(const ggml_tensor * t) {
        ggml_tensor * c = ggml_new_tensor(ctx, t->type, GGML_MAX_DIMS, t->ne);
        *c = *t;
        return c;
    }

    void add(ggml_tensor * node) {
        ggml_graph_add_node(graph, node);
        n_nodes++;
    }

    ggml_status compute(ggml_backend_t cpu) {
        const ggml_status status = empty() ? GGML_STATUS_SUCCESS : ggml_backend_graph_compute(cpu, graph);
        clear();
        return status;
    }

private:
    void clear() {
        ggml_reset(ctx);
        graph   = ggml_new_graph_custom(ctx, MAX_NODES, false);
        n_nodes = 0;
    }

    ggml_context * ctx;
    ggml_cgraph  * graph;
    size_t         n_nodes;
};

struct backend_context {
    ggml_backend_t cpu = nullptr;
    ggml_threadpool_t threadpool = nullptr;
    int n_threads = 0;

    inner_graph graph;

    // a model stays open for as long as a fetch of it exists
    std::map<std::shared_ptr<hypura_model>, fetch_ptr> fetches;

    // scratch, kept to avoid allocation
    std::vector<int32_t>    ids;
    std::vector<routed_row> rows;       // by expert
    std::vector<size_t>     row_starts; // by expert, where its rows start
    std::vector<char>       gathered;
    std::vector<int32_t>    zeros;      // ids of an expert's rows: it is the only one

    char error[1024];

    ~backend_context() {
        ggml_backend_free(cpu);
        if (threadpool) {
            proc<decltype(ggml_threadpool_free)>("ggml_threadpool_free")(threadpool);
        }
    }

    template <typename F> F * proc(const char * name) const {
        ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu));
        return (F *) ggml_backend_reg_get_proc_address(reg, name);
    }

    hypura_fetch_t * fetch_for(const std::shared_ptr<hypura_model> & model) {
        fetch_ptr & fetch = fetches[model];
        if (!fetch) {
            hypura_fetch_t * created = nullptr;
            if (hypura_fetch_new(model->handle, &created, error, sizeof(error)) != HYPURA_STATUS_OK) {
                return nullptr;
            }
            fetch.reset(created);
        }
        return fetch.get();
    }

    ggml_status failed(const ggml_tensor * node) {
        GGML_LOG_ERROR("hypura: cannot compute %s: %s\n", node->name, error);
        return GGML_STATUS_FAILED;
    }
};

backend_context * context(ggml_backend_t backend) {
    return (backend_context *) backend->context;
}

// a node's copy that computes with the weights at `data`
ggml_tensor * redirect(backend_context & ctx, const ggml_tensor * node, const void * data) {
    ggml_tensor * copy   = ctx.graph.copy(node);
    ggml_tensor * weight = ctx.graph.copy(node->src[0]);
    weight->data  = const_cast<char *>((const char *) data + weight->view_offs);
    weight->extra = nullptr; // ggml-cpu takes a set extra for repacked weights and avoids its tiled kernels
    copy->src[0] = weight;
    return copy;
}

ggml_status compute_mul_mat(backend_context & ctx, const ggml_tensor * node, const hypura_tensor * weight) {
    hypura_fetch_t * fetch = ctx.fetch_for(weight->model);
    if (!fetch || hypura_fetch_begin(fetch, weight->index, nullptr, 0, node->src[1]->ne[1], ctx.error, sizeof(ctx.error)) != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    hypura_block block;
    size_t count = 0;
    ggml_status status = GGML_STATUS_FAILED;
    if (hypura_fetch_next(fetch, &block, 1, &count, ctx.error, sizeof(ctx.error)) == HYPURA_STATUS_OK) {
        ctx.graph.add(redirect(ctx, node, block.data));
        status = ctx.graph.compute(ctx.cpu);
    } else {
        ctx.failed(node);
    }
    hypura_fetch_end(fetch);
    return status;
}

// sorts the router's choices by expert
void sort_rows(backend_context & ctx, const ggml_tensor * ids, int64_t n_experts) {
    const int64_t n_used   = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];

    ctx.ids.resize(n_used*n_tokens);
    for (int64_t token = 0; token < n_tokens; ++token) {
        for (int64_t choice = 0; choice < n_used; ++choice) {
            ctx.ids[token*n_used + choice] = *(const int32_t *) ((const char *) ids->data + token*ids->nb[1] + choice*ids->nb[0]);
        }
    }

    // a counting sort keeps the order of an expert's rows
    ctx.row_starts.assign(n_experts + 2, 0);
    for (int32_t id : ctx.ids) {
        if (id >= 0 && id < n_experts) { // others are refused by libhypura
            ctx.row_starts[id + 2]++;
        }
    }
    for (int64_t i = 2; i < n_experts + 2; ++i) {
        ctx.row_starts[i] += ctx.row_starts[i - 1];
    }
    ctx.rows.resize(ctx.ids.size());
    for (size_t i = 0; i < ctx.ids.size(); ++i) {
        const int32_t id = ctx.ids[i];
        if (id >= 0 && id < n_experts) {
            ctx.rows[ctx.row_starts[id + 1]++] = { (int32_t) (i % n_used), (int32_t) (i / n_used) };
        }
    }
}

// the rows of one expert in a MUL_MAT_ID
struct expert_rows {
    const ggml_tensor * node;
    const routed_row *  rows;
    int64_t             n_rows;
    char *              in;  // gathered rows of src[1]
    char *              out; // results, to be scattered

    size_t in_row_bytes()  const { return node->src[1]->ne[0]*ggml_type_size(node->src[1]->type); }
    size_t out_row_bytes() const { return node->ne[0]*sizeof(float); }

    const char * source(const routed_row & row) const {
        const ggml_tensor * src = node->src[1];
        return (const char *) src->data + (row.choice % src->ne[1])*src->nb[1] + row.token*src->nb[2];
    }

    char * destination(const routed_row & row) const {
        return (char *) node->data + row.choice*node->nb[1] + row.token*node->nb[2];
    }

    // bytes of scratch: none for a single row, which is used in place
    size_t scratch_bytes() const { return n_rows == 1 ? 0 : n_rows*(in_row_bytes() + out_row_bytes()); }

    void gather(char * scratch) {
        if (n_rows == 1) {
            in  = const_cast<char *>(source(rows[0]));
            out = destination(rows[0]);
            return;
        }
        in  = scratch;
        out = scratch + n_rows*in_row_bytes();
        for (int64_t i = 0; i < n_rows; ++i) {
            memcpy(in + i*in_row_bytes(), source(rows[i]), in_row_bytes());
        }
    }

    void scatter() const {
        for (int64_t i = 0; i < n_rows && n_rows > 1; ++i) {
            memcpy(destination(rows[i]), out + i*out_row_bytes(), out_row_bytes());
        }
    }
};

// gives a tensor the shape [ne0, 1, n_rows] over contiguous memory
void reshape_rows(ggml_tensor * t, int64_t n_rows, void * data) {
    t->ne[1] = 1;
    t->ne[2] = n_rows;
    t->ne[3] = 1;
    t->nb[1] = t->ne[0]*t->nb[0];
    t->nb[2] = t->nb[1];
    t->nb[3] = t->nb[2]*n_rows;
    t->data  = data;
}

void add_expert(backend_context & ctx, const expert_rows & expert, const void * data) {
    ggml_tensor * node = redirect(ctx, expert.node, data);
    node->src[0]->ne[2] = 1;
    node->src[0]->nb[3] = node->src[0]->nb[2];

    node->src[1] = ctx.graph.copy(expert.node->src[1]);
    reshape_rows(node->src[1], expert.n_rows, expert.in);

    ggml_tensor * ids = ctx.graph.copy(expert.node->src[2]);
    ids->ne[0] = 1;
    ids->ne[1] = expert.n_rows;
    ids->nb[0] = ids->nb[1] = sizeof(int32_t);
    ids->nb[2] = ids->nb[3] = expert.n_rows*sizeof(int32_t);
    ids->data  = ctx.zeros.data();
    node->src[2] = ids;

    reshape_rows(node, expert.n_rows, expert.out);
    ctx.graph.add(node);
}

// computes with the experts that were delivered, as many at a time as the scratch memory allows
ggml_status compute_experts(backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks, size_t n_blocks) {
    ctx.zeros.resize(std::max(ctx.zeros.size(), ctx.rows.size()), 0);

    expert_rows pending[MAX_NODES];
    size_t first = 0;
    while (first < n_blocks) {
        size_t n_pending = 0;
        size_t scratch_bytes = 0;
        for (size_t i = first; i < n_blocks && n_pending < MAX_NODES; ++i) {
            const size_t start = ctx.row_starts[blocks[i].expert];
            const size_t end   = ctx.row_starts[blocks[i].expert + 1];
            const expert_rows expert = { node, ctx.rows.data() + start, (int64_t) (end - start), nullptr, nullptr };
            if (n_pending > 0 && scratch_bytes + expert.scratch_bytes() > MAX_GATHER_BYTES) {
                break;
            }
            scratch_bytes += expert.scratch_bytes();
            pending[n_pending++] = expert;
        }
        ctx.gathered.resize(std::max(ctx.gathered.size(), scratch_bytes));
        char * scratch = ctx.gathered.data();
        for (size_t i = 0; i < n_pending; ++i) {
            pending[i].gather(scratch);
            scratch += pending[i].scratch_bytes();
            add_expert(ctx, pending[i], blocks[first + i].data);
        }
        const ggml_status status = ctx.graph.compute(ctx.cpu);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        for (size_t i = 0; i < n_pending; ++i) {
            pending[i].scatter();
        }
        first += n_pending;
    }
    return GGML_STATUS_SUCCESS;
}

ggml_status compute_mul_mat_id(backend_context & ctx, const ggml_tensor * node, const hypura_tensor * weight) {
    const ggml_tensor * ids = node->src[2];
    sort_rows(ctx, ids, node->src[0]->ne[2]);

    hypura_fetch_t * fetch = ctx.fetch_for(weight->model);
    if (!fetch || hypura_fetch_begin(fetch, weight->index, ctx.ids.data(), ctx.ids.size(), ids->ne[1], ctx.error, sizeof(ctx.error)) != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    hypura_block blocks[MAX_NODES];
    ggml_status status = GGML_STATUS_SUCCESS;
    size_t count = 1;
    while (status == GGML_STATUS_SUCCESS && count > 0) {
        if (hypura_fetch_next(fetch, blocks, MAX_NODES, &count, ctx.error, sizeof(ctx.error)) != HYPURA_STATUS_OK) {
            status = ctx.failed(node);
        } else {
            status = compute_experts(ctx, node, blocks, count);
        }
    }
    hypura_fetch_end(fetch);
    return status;
}

ggml_status compute_node(backend_context & ctx, ggml_tensor * node) {
    const hypura_tensor * weight = node->src[0] ? hypura_find_tensor(node->src[0]) : nullptr;
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return GGML_STATUS_SUCCESS;
        case GGML_OP_MUL_MAT:
            GGML_ASSERT(weight);
            return compute_mul_mat(ctx, node, weight);
        case GGML_OP_MUL_MAT_ID:
            GGML_ASSERT(weight);
            return compute_mul_mat_id(ctx, node, weight);
        default:
            ctx.graph.add(node);
            return ctx.graph.compute(ctx.cpu);
    }
}

const char * backend_get_name(ggml_backend_t backend) {
    GGML_UNUSED(backend);
    return "Hypura";
}

void backend_free(ggml_backend_t backend) {
    delete context(backend);
    delete backend;
}

ggml_status backend_graph_compute(ggml_backend_t backend, ggml_cgraph * cgraph) {
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        ggml_tensor * node = cgraph->nodes[i];
        if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            continue;
        }
        const ggml_status status = compute_node(*context(backend), node);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

const ggml_backend_i backend_interface = {
    /* .get_name            = */ backend_get_name,
    /* .free                = */ backend_free,
    /* .set_tensor_async    = */ nullptr,
    /* .get_tensor_async    = */ nullptr,
    /* .set_tensor_2d_async = */ nullptr,
    /* .get_tensor_2d_async = */ nullptr,
    /* .cpy_tensor_async    = */ nullptr,
    /* .synchronize         = */ nullptr,
    /* .graph_plan_create   = */ nullptr,
    /* .graph_plan_free     = */ nullptr,
    /* .graph_plan_update   = */ nullptr,
    /* .graph_plan_compute  = */ nullptr,
    /* .graph_compute       = */ backend_graph_compute,
    /* .event_record        = */ nullptr,
    /* .event_wait          = */ nullptr,
    /* .graph_optimize      = */ nullptr,
};

ggml_guid_t backend_guid() {
    static ggml_guid guid = { 0x68, 0x79, 0x70, 0x75, 0x72, 0x61, 0x4e, 0x1c, 0x9a, 0x57, 0x3b, 0xd2, 0x84, 0x0f, 0x6e, 0xc1 };
    return &guid;
}

// OpenMP builds share one team of threads; others would start new threads for every inner graph
bool needs_threadpool(const backend_context & ctx) {
    auto get_features = (ggml_backend_get_features_t) ctx.proc<void>("ggml_backend_get_features");
    for (const ggml_backend_feature * f = get_features ? get_features(nullptr) : nullptr; f && f->name; ++f) {
        if (strcmp(f->name, "OPENMP") == 0) {
            return false;
        }
    }
    return true;
}

} // namespace

ggml_backend_t hypura_backend_init(ggml_backend_dev_t dev) {
    auto ctx = std::make_unique<backend_context>();
    ctx->cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (!ctx->cpu) {
        GGML_LOG_ERROR("hypura: there is no CPU backend to compute with\n");
        return nullptr;
    }
    return new ggml_backend {
        /* .guid    = */ backend_guid(),
        /* .iface   = */ backend_interface,
        /* .device  = */ dev,
        /* .context = */ ctx.release(),
    };
}

void hypura_backend_set_n_threads(ggml_backend_t backend, int n_threads) {
    backend_context & ctx = *context(backend);
    if (ctx.n_threads == n_threads) {
        return;
    }
    ctx.n_threads = n_threads;
    ctx.proc<void (ggml_backend_t, int)>("ggml_backend_set_n_threads")(ctx.cpu, n_threads);

    if (needs_threadpool(ctx)) {
        ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
        ggml_threadpool_t old = ctx.threadpool;
        ctx.threadpool = ctx.proc<decltype(ggml_threadpool_new)>("ggml_threadpool_new")(&params);
        ctx.proc<decltype(ggml_backend_cpu_set_threadpool)>("ggml_backend_cpu_set_threadpool")(ctx.cpu, ctx.threadpool);
        if (old) {
            ctx.proc<decltype(ggml_threadpool_free)>("ggml_threadpool_free")(old);
        }
    }
}

void hypura_backend_set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    backend_context & ctx = *context(backend);
    ctx.proc<void (ggml_backend_t, ggml_abort_callback, void *)>("ggml_backend_set_abort_callback")(ctx.cpu, callback, data);
}
