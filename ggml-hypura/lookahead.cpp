// What an expert layer is shown to libhypura by, so that it can foresee the next one: what the experts get, which is
// what most routers got. Where experts work in a space of their own (latent experts), it is what the router got, as
// long as it is still in memory. Whether that is so no graph tells for certain, since memory is used again; libhypura
// compares it with what the router chose.

#include "context.h"

namespace hypura {

namespace {

constexpr int64_t MAX_ROWS = 8;
constexpr int MAX_STEPS = 32;

// what the router of these choices was applied to; null where the scheduler has cut the graph in between, or where no
// router chose
const ggml_tensor * find_router_input(const ggml_tensor * ids) {
    const ggml_tensor * t = ids;
    for (int step = 0; t && step < MAX_STEPS; ++step) {
        if (t->op == GGML_OP_MUL_MAT && t->src[0]->op == GGML_OP_NONE) {
            return t->src[1];
        }
        t = t->src[0];
    }
    return nullptr;
}

// whether a tensor holds one row of floats for each token
bool has_rows(const ggml_tensor * t, int64_t n_tokens) {
    return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && ggml_nrows(t) == n_tokens;
}

bool is_readable(const ggml_tensor * t) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return buffer && ggml_backend_buffer_is_host(buffer) && t->data;
}

} // namespace

void look_ahead(hypura_fetch_t * fetch, const ggml_tensor * node) {
    const ggml_tensor * ids = node->src[2];
    const int64_t n_tokens = ids->ne[1];
    const ggml_tensor * input = has_rows(node->src[1], n_tokens) ? node->src[1] : nullptr;
    const ggml_tensor * router_input = find_router_input(ids);
    if (router_input && has_rows(router_input, n_tokens) && is_readable(router_input)
            && (!input || input->ne[0] != router_input->ne[0])) {
        input = router_input;
    }
    if (!input || n_tokens == 0) {
        return;
    }
    // of a prompt the last row is enough to learn from
    const int64_t n_rows = n_tokens <= MAX_ROWS ? n_tokens : 1;
    const float * rows = (const float *) input->data + (n_tokens - n_rows) * input->ne[0];
    hypura_fetch_look_ahead(fetch, rows, input->ne[0], n_rows);
}

} // namespace hypura
