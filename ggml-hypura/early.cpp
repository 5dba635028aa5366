// Computing nodes of a layer before their turn, while an earlier one waits for the drive. Their results lie in memory
// of their own until then.

#include "context.h"

namespace hypura {

namespace {

// What of a layer's tensors there is while one of its nodes waits for the drive.
struct waiting_layer {
    backend_context & ctx;
    ggml_cgraph * graph;
    int current;

    const ggml_tensor * now() const { return graph->nodes[current]; }

    // by expert: whether a tensor has its rows; none: it has those of all
    struct rows {
        bool is_known;
        const std::vector<bool> * by_expert;
        bool has(size_t expert) const { return !by_expert || (*by_expert)[expert]; }
    };

    rows rows_of(const ggml_tensor * t) const {
        if (t == now()) {
            return { true, &ctx.is_done };
        }
        if (const early_result * result = ctx.early_of(t)) {
            return { true, &result->is_done };
        }
        ggml_tensor ** const end = graph->nodes + current;
        return { t == now()->src[1] || std::find(graph->nodes, end, t) != end, nullptr };
    }

    // where those rows are
    ggml_tensor * place_of(ggml_tensor * t) const {
        early_result * result = t == now() ? nullptr : ctx.early_of(t);
        return result ? &result->copy : t;
    }

    // a place for the result of a node whose inputs are there as far as they can be; none if they are not, or if it is
    // no such node
    early_result * begin(const ggml_tensor * node) const {
        const bool is_glu = node->op == GGML_OP_GLU && node->src[1] && rows_of(node->src[0]).is_known;
        const bool is_mul = node->op == GGML_OP_MUL_MAT_ID && node->src[2] == now()->src[2];
        if (!(is_glu || is_mul) || !rows_of(node->src[1]).is_known) {
            return nullptr;
        }
        early_result * result = ctx.early_of(node);
        if (!result && (result = ctx.early_of(nullptr))) {
            result->begin(node, ctx.is_done.size());
        }
        return result;
    }
};

// all rows, of which those of experts that are missing make no sense yet
ggml_status compute_glu_early(const waiting_layer & layer, early_result & result) {
    const ggml_tensor * node = result.node;
    const waiting_layer::rows first = layer.rows_of(node->src[0]);
    const waiting_layer::rows second = layer.rows_of(node->src[1]);
    for (size_t expert = 0; expert < result.is_done.size(); ++expert) {
        result.is_done[expert] = first.has(expert) && second.has(expert);
    }
    result.copy.src[0] = layer.place_of(node->src[0]);
    result.copy.src[1] = layer.place_of(node->src[1]);
    layer.ctx.graph.add(layer.ctx.graph.copy(&result.copy));
    return layer.ctx.graph.compute(layer.ctx.cpu);
}

// the experts that are in RAM and whose input is there
ggml_status compute_experts_early(const waiting_layer & layer, early_result & result, hypura_fetch_t * fetch) {
    backend_context & ctx = layer.ctx;
    const ggml_tensor * node = result.node;
    const ggml_hypura_tensor * weight = ggml_hypura_find_tensor(node->src[0]);
    if (!weight) {
        return GGML_STATUS_SUCCESS; // by now it is in memory as a whole, and computed when its turn comes
    }
    hypura_block blocks[MAX_EARLY_ROWS];
    size_t n_blocks = 0;
    if (hypura_fetch_early(fetch, weight->index, blocks, MAX_EARLY_ROWS, &n_blocks, ctx.error, sizeof(ctx.error))
            != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    const waiting_layer::rows input = layer.rows_of(node->src[1]);
    auto is_not_for_now = [&](const hypura_block & b) { return result.is_done[b.expert] || !input.has(b.expert); };
    n_blocks = std::remove_if(blocks, blocks + n_blocks, is_not_for_now) - blocks;
    std::for_each(blocks, blocks + n_blocks, [&](const hypura_block & b) { result.is_done[b.expert] = true; });
    result.copy.src[1] = layer.place_of(node->src[1]);
    return n_blocks > 0 ? compute_experts(ctx, &result.copy, blocks, n_blocks) : GGML_STATUS_SUCCESS;
}

} // namespace

ggml_status compute_early(backend_context & ctx, ggml_cgraph * graph, int current, hypura_fetch_t * fetch) {
    const waiting_layer layer = { ctx, graph, current };
    for (int i = current + 1; i < graph->n_nodes; ++i) {
        ggml_tensor * node = graph->nodes[i];
        if (node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE) {
            continue;
        }
        early_result * result = layer.begin(node);
        if (!result) {
            break;
        }
        const ggml_status status = node->op == GGML_OP_GLU ? compute_glu_early(layer, *result)
                                                           : compute_experts_early(layer, *result, fetch);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

size_t take_early(backend_context & ctx, const ggml_tensor * node, hypura_block * blocks, size_t n_blocks) {
    early_result * result = ctx.early_of(node);
    if (!result) {
        return n_blocks;
    }
    auto is_left = [&](const hypura_block & b) { return !result->is_done[b.expert]; };
    const size_t n_left = std::stable_partition(blocks, blocks + n_blocks, is_left) - blocks;
    for (size_t b = n_left; b < n_blocks; ++b) {
        for (size_t row = ctx.row_starts[blocks[b].expert]; row < ctx.row_starts[blocks[b].expert + 1]; ++row) {
            const size_t offset = ctx.rows[row].choice * node->nb[1] + ctx.rows[row].token * node->nb[2];
            memcpy((char *) node->data + offset, result->memory.data() + offset, node->ne[0] * sizeof(float));
        }
    }
    return n_left;
}

} // namespace hypura
