// Tables that are looked up: a GET_ROWS gets the rows that it names, and the rest of the table stays in its file.

#include "context.h"

#include <cstdio>
#include <numeric>

namespace hypura {

namespace {

// of rows that are unpacked at a time
constexpr size_t MAX_BYTES = 4u << 20;

// a copy of a tensor that stands for `n` rows of it
ggml_tensor * rows_of(backend_context & ctx, const ggml_tensor * t, size_t row_bytes, int64_t n, void * data) {
    ggml_tensor * c = ctx.graph.copy(t);
    c->ne[1] = n;
    c->nb[1] = row_bytes;
    c->nb[2] = c->nb[3] = n * row_bytes;
    c->data = data;
    c->extra = nullptr;
    c->view_src = nullptr;
    c->view_offs = 0;
    return c;
}

ggml_status compute_some_rows(
        backend_context & ctx, const ggml_tensor * node, size_t row_bytes, int64_t first, int64_t n) {
    std::iota(ctx.positions.begin(), ctx.positions.begin() + n, 0);
    ggml_tensor * ids = ctx.graph.copy(node->src[1]);
    ids->ne[0] = n;
    ids->nb[0] = sizeof(int32_t);
    ids->nb[1] = ids->nb[2] = ids->nb[3] = n * sizeof(int32_t);
    ids->data = ctx.positions.data();

    ggml_tensor * result = ctx.graph.copy(node);
    result->ne[1] = n;
    result->data = (char *) node->data + first * node->nb[1];
    result->src[0] = rows_of(ctx, node->src[0], row_bytes, n, ctx.gathered.data());
    result->src[1] = ids;
    ctx.graph.add(result);
    return ctx.graph.compute(ctx.cpu);
}

} // namespace

ggml_status compute_get_rows(backend_context & ctx, const ggml_tensor * node, const ggml_hypura_tensor * table) {
    const ggml_tensor * weight = node->src[0];
    hypura_fetch_t * fetch = ctx.fetch_for(table->model);
    if (!fetch) {
        return ctx.failed(node);
    }
    const size_t row_bytes = ggml_row_size(weight->type, weight->ne[0]);
    if (!find_row_ids(node, ctx.ids)) {
        snprintf(ctx.error, sizeof(ctx.error), "its rows do not lie as they do in the file; run with HYPURA=off");
        return ctx.failed(node);
    }

    const int64_t n_ids = ctx.ids.size();
    const int64_t n_at_once = std::min<int64_t>(n_ids, std::max<size_t>(1, MAX_BYTES / row_bytes));
    ctx.gathered.resize(std::max(ctx.gathered.size(), n_at_once * row_bytes));
    ctx.positions.resize(std::max<size_t>(ctx.positions.size(), n_at_once));
    ggml_status status = GGML_STATUS_SUCCESS;
    for (int64_t first = 0; first < n_ids && status == GGML_STATUS_SUCCESS; first += n_at_once) {
        const int64_t n = std::min(n_at_once, n_ids - first);
        if (hypura_fetch_rows(fetch, table->index, ctx.ids.data() + first, n, (uint8_t *) ctx.gathered.data(),
                    n * row_bytes, ctx.error, sizeof(ctx.error))
                != HYPURA_STATUS_OK) {
            return ctx.failed(node);
        }
        status = compute_some_rows(ctx, node, row_bytes, first, n);
    }
    return status;
}

ggml_status compute_copy_of_table(backend_context & ctx, const ggml_tensor * node, const ggml_hypura_tensor * table) {
    const ggml_tensor * part = node->src[0];
    const size_t size = ggml_nbytes(part);
    ctx.gathered.resize(std::max(ctx.gathered.size(), size));
    if (hypura_model_read(table->model->handle, table->index, part->view_offs, size, (uint8_t *) ctx.gathered.data(),
                ctx.error, sizeof(ctx.error))
            != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    ggml_tensor * source = ctx.graph.copy(part);
    source->data = ctx.gathered.data();
    source->extra = nullptr;
    ggml_tensor * result = ctx.graph.copy(node);
    result->src[0] = source;
    ctx.graph.add(result);
    return ctx.graph.compute(ctx.cpu);
}

} // namespace hypura
