// What a graph is certain to want is known before it is computed where it follows from the graph's inputs: a router
// that looks experts up by the token (deepseek4's first layers), a table of which rows are looked up. The whole graph
// is looked through once, when its inputs have been set.

#include "context.h"

namespace hypura {

namespace {

bool is_readable(const ggml_tensor * t) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return buffer && t->data && ggml_backend_buffer_is_host(buffer);
}

// an input that is a list of numbers, which are there
bool is_known_list(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE && t->type == GGML_TYPE_I32 && t->ne[1] * t->ne[2] * t->ne[3] == 1 && is_readable(t);
}

// numbers that a table of numbers in memory gives for each of a known list, as ggml computes them; false where it is
// not that
bool look_up(const ggml_tensor * ids, std::vector<int32_t> & found) {
    if (ids->op != GGML_OP_GET_ROWS || ids->type != GGML_TYPE_I32) {
        return false;
    }
    const ggml_tensor * table = ids->src[0];
    const ggml_tensor * rows = ids->src[1];
    if (table->op != GGML_OP_NONE || table->type != GGML_TYPE_I32 || table->nb[0] != sizeof(int32_t)
            || !is_readable(table) || !is_known_list(rows)) {
        return false;
    }
    found.clear();
    for (int64_t i = 0; i < rows->ne[0]; ++i) {
        const int32_t row = *(const int32_t *) ((const char *) rows->data + i * rows->nb[0]);
        if (row < 0 || row >= table->ne[1]) {
            return false;
        }
        const auto * first = (const int32_t *) ((const char *) table->data + row * table->nb[1]);
        found.insert(found.end(), first, first + table->ne[0]);
    }
    return true;
}

} // namespace

bool find_row_ids(const ggml_tensor * node, std::vector<int32_t> & found) {
    const ggml_tensor * table = node->src[0];
    const ggml_tensor * ids = node->src[1];
    const size_t row_bytes = ggml_row_size(table->type, table->ne[0]);
    if (table->nb[1] != row_bytes || table->ne[2] != 1 || ids->ne[1] != 1 || table->view_offs % row_bytes != 0) {
        return false;
    }
    const int32_t first_row = table->view_offs / row_bytes;
    found.resize(ids->ne[0]);
    for (int64_t i = 0; i < ids->ne[0]; ++i) {
        found[i] = first_row + *(const int32_t *) ((const char *) ids->data + i * ids->nb[0]);
    }
    return true;
}

void expect_rows(ggml_backend_t ours, const ggml_tensor * table, const int32_t * ids, size_t n_ids) {
    backend_context & ctx = *(backend_context *) ours->context;
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(table);
    if (hypura_fetch_t * fetch = t && t->is_table ? ctx.fetch_for(t->model) : nullptr) {
        hypura_fetch_expect(fetch, t->index, ids, n_ids);
    }
}

void expect(ggml_backend_t ours, ggml_cgraph * graph) {
    backend_context & ctx = *(backend_context *) ours->context;
    ctx.begin_graph();
    const ggml_tensor * latest = nullptr; // of several matrices of a layer the first is enough
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor * node = graph->nodes[i];
        if (node->op == GGML_OP_GET_ROWS && is_known_list(node->src[1])) {
            const ggml_hypura_tensor * table = ggml_hypura_find_tensor(node->src[0]);
            if (table && table->is_table && find_row_ids(node, ctx.ids)) {
                expect_rows(ours, node->src[0], ctx.ids.data(), ctx.ids.size());
            }
        }
        if (node->op != GGML_OP_MUL_MAT_ID || node->src[2] == latest) {
            continue;
        }
        const ggml_hypura_tensor * weight = ggml_hypura_find_tensor(node->src[0]);
        if (!weight || !look_up(node->src[2], ctx.ids)) {
            continue;
        }
        latest = node->src[2];
        if (hypura_fetch_t * fetch = ctx.fetch_for(weight->model)) {
            hypura_fetch_expect(fetch, weight->index, ctx.ids.data(), ctx.ids.size());
        }
    }
}

} // namespace hypura
