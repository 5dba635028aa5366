// The backend: computes sub-graphs on weights that arrive while it computes.
//
// The maths is the CPU backend's own: every node is copied with its weight pointing at where libhypura put it, and
// given to an inner CPU backend, so results are the same bit for bit. A MUL_MAT_ID is computed in as many pieces as its
// experts arrive in: the kernels choose by the number of rows of an expert, so rows of one expert are never split, and
// it stays a MUL_MAT_ID.

#include "context.h"

#include <cstdio>

using namespace hypura;

namespace {

backend_context * context(ggml_backend_t backend) { return (backend_context *) backend->context; }

ggml_status compute_mul_mat(backend_context & ctx, const ggml_tensor * node, const ggml_hypura_tensor * weight) {
    hypura_fetch_t * fetch = ctx.fetch_for(weight->model);
    if (!fetch
            || hypura_fetch_begin(fetch, weight->index, nullptr, 0, node->src[1]->ne[1], ctx.error, sizeof(ctx.error))
                    != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    hypura_block block;
    size_t count = 0;
    ggml_status status = GGML_STATUS_FAILED;
    if (hypura_fetch_next(fetch, &block, 1, &count, ctx.error, sizeof(ctx.error)) == HYPURA_STATUS_OK) {
        ctx.graph.add(ctx.graph.redirected_copy(node, block.data));
        status = ctx.graph.compute(ctx.cpu);
    } else {
        ctx.failed(node);
    }
    hypura_fetch_end(fetch);
    return status;
}

ggml_status compute_mul_mat_id(
        backend_context & ctx, ggml_cgraph * graph, int index, const ggml_hypura_tensor * weight) {
    const ggml_tensor * node = graph->nodes[index];
    const ggml_tensor * ids = node->src[2];
    const int64_t n_experts = node->src[0]->ne[2];
    sort_rows(ctx, ids, n_experts);

    hypura_fetch_t * fetch = ctx.fetch_for(weight->model);
    if (!fetch
            || hypura_fetch_begin(
                       fetch, weight->index, ctx.ids.data(), ctx.ids.size(), ids->ne[1], ctx.error, sizeof(ctx.error))
                    != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    look_ahead(fetch, node);
    hypura_block blocks[MAX_NODES];
    ggml_status status = GGML_STATUS_SUCCESS;
    size_t count = 1;
    ctx.is_done.assign(n_experts, false);
    bool may_be_early = ctx.ids.size() <= MAX_EARLY_ROWS;
    while (status == GGML_STATUS_SUCCESS && count > 0) {
        if (may_be_early && !hypura_fetch_is_ready(fetch)) {
            may_be_early = false;
            status = compute_early(ctx, graph, index, fetch);
            continue;
        }
        if (hypura_fetch_next(fetch, blocks, MAX_NODES, &count, ctx.error, sizeof(ctx.error)) != HYPURA_STATUS_OK) {
            status = ctx.failed(node);
            continue;
        }
        std::for_each(blocks, blocks + count, [&](const hypura_block & b) { ctx.is_done[b.expert] = true; });
        const size_t n_left = take_early(ctx, node, blocks, count);
        status = n_left > 0 ? compute_experts(ctx, node, blocks, n_left) : GGML_STATUS_SUCCESS;
    }
    hypura_fetch_end(fetch);
    return status;
}

bool is_nothing(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: return true;
        default: return false;
    }
}

ggml_status compute_node(backend_context & ctx, ggml_cgraph * graph, int index) {
    ggml_tensor * node = graph->nodes[index];
    if (is_nothing(node)) {
        return GGML_STATUS_SUCCESS;
    }
    // it is where the scheduler asked, unless that failed
    if (!ggml_hypura_keep_what_is_used_otherwise(node, ctx.error, sizeof(ctx.error))) {
        return ctx.failed(node);
    }
    const ggml_hypura_tensor * weight = node->src[0] ? ggml_hypura_find_tensor(node->src[0]) : nullptr;
    if (weight && weight->is_awaited) {
        snprintf(ctx.error, sizeof(ctx.error), "%s was never loaded", node->src[0]->name);
        return ctx.failed(node);
    }
    switch (weight ? node->op : GGML_OP_NONE) {
        case GGML_OP_MUL_MAT: return compute_mul_mat(ctx, node, weight);
        case GGML_OP_MUL_MAT_ID: return compute_mul_mat_id(ctx, graph, index, weight);
        case GGML_OP_GET_ROWS: return compute_get_rows(ctx, node, weight);
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_DUP: return compute_copy_of_table(ctx, node, weight);
        default: ctx.graph.add(node); return ctx.graph.compute(ctx.cpu);
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
    backend_context & ctx = *context(backend);
    finish_copies(ctx);
    ctx.enter(cgraph);
    for (early_result & result : ctx.early) {
        result.node = nullptr; // of a graph that failed
    }
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        if ((cgraph->nodes[i]->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            continue;
        }
        const ggml_status status = compute_node(ctx, cgraph, i);
        ctx.forget_early(cgraph->nodes[i]);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

ggml_backend_i make_interface() {
    ggml_backend_i iface = {};
    iface.get_name = backend_get_name;
    iface.free = backend_free;
    iface.graph_compute = backend_graph_compute;
    return iface;
}

ggml_guid_t backend_guid() {
    static ggml_guid guid = { 0x68, 0x79, 0x70, 0x75, 0x72, 0x61, 0x4e, 0x1c, 0x9a, 0x57, 0x3b, 0xd2, 0x84, 0x0f, 0x6e,
        0xc1 };
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

ggml_backend_t ggml_hypura_backend_init(ggml_backend_dev_t dev) {
    auto ctx = std::make_unique<backend_context>();
    ctx->cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (!ctx->cpu) {
        GGML_LOG_ERROR("hypura: there is no CPU backend to compute with\n");
        return nullptr;
    }
    return new ggml_backend {
        /* .guid    = */ backend_guid(),
        /* .iface   = */ make_interface(),
        /* .device  = */ dev,
        /* .context = */ ctx.release(),
    };
}

void ggml_hypura_backend_set_n_threads(ggml_backend_t backend, int n_threads) {
    backend_context & ctx = *context(backend);
    if (ctx.n_threads == n_threads) {
        return;
    }
    ctx.n_threads = n_threads;
    ctx.proc<void(ggml_backend_t, int)>("ggml_backend_set_n_threads")(ctx.cpu, n_threads);

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

void ggml_hypura_backend_set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    backend_context & ctx = *context(backend);
    ctx.proc<void(ggml_backend_t, ggml_abort_callback, void *)>("ggml_backend_set_abort_callback")(
            ctx.cpu, callback, data);
}
