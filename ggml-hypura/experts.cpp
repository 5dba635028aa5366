// A MUL_MAT_ID with the experts that were delivered: one node over all of them where their distance in memory is the
// same, else one node for each, over the rows that the router sent there.

#include "context.h"

#include <numeric>

namespace hypura {

namespace {

// rows gathered for several experts at once may take this much
constexpr size_t MAX_GATHER_BYTES = 32u << 20;

// experts over which one node may be spread, for each that it is for: beyond it, looking at all of them costs more than
// nodes
constexpr size_t MAX_SPREAD = 512;

// a node sets room aside for all rows in each of the experts over which it is spread
constexpr size_t MAX_ROW_SLOTS = 512u << 10;

// gives a tensor the shape [ne0, 1, n_rows] over contiguous memory
void reshape_rows(ggml_tensor * t, int64_t n_rows, void * data) {
    t->ne[1] = 1;
    t->ne[2] = n_rows;
    t->ne[3] = 1;
    t->nb[1] = t->ne[0] * t->nb[0];
    t->nb[2] = t->nb[1];
    t->nb[3] = t->nb[2] * n_rows;
    t->data = data;
}

void add_expert(backend_context & ctx, const expert_rows & expert, const void * data) {
    ggml_tensor * node = ctx.graph.redirected_copy(expert.node, data);
    node->src[0]->ne[2] = 1;
    node->src[0]->nb[3] = node->src[0]->nb[2];

    node->src[1] = ctx.graph.copy(expert.node->src[1]);
    reshape_rows(node->src[1], expert.n_rows, expert.in);

    ggml_tensor * ids = ctx.graph.copy(expert.node->src[2]);
    ids->ne[0] = 1;
    ids->ne[1] = expert.n_rows;
    ids->nb[0] = ids->nb[1] = sizeof(int32_t);
    ids->nb[2] = ids->nb[3] = expert.n_rows * sizeof(int32_t);
    ids->data = ctx.zeros.data();
    node->src[2] = ids;

    reshape_rows(node, expert.n_rows, expert.out);
    ctx.graph.add(node);
}

// one node for each expert that was delivered, as many at a time as the scratch memory allows
ggml_status compute_one_by_one(
        backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks, size_t n_blocks) {
    ctx.zeros.resize(std::max(ctx.zeros.size(), ctx.rows.size()), 0);

    expert_rows pending[MAX_NODES];
    size_t first = 0;
    while (first < n_blocks) {
        size_t n_pending = 0;
        size_t scratch_bytes = 0;
        for (size_t i = first; i < n_blocks && n_pending < MAX_NODES; ++i) {
            const size_t start = ctx.row_starts[blocks[i].expert];
            const size_t end = ctx.row_starts[blocks[i].expert + 1];
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
            if (pending[i].n_rows == 1) {
                pending[i].use_in_place();
            } else {
                pending[i].gather(scratch, scratch + pending[i].n_rows * pending[i].in_row_bytes());
                scratch += pending[i].scratch_bytes();
            }
            add_expert(ctx, pending[i], blocks[first + i].data);
        }
        const ggml_status status = ctx.graph.compute(ctx.cpu);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        for (size_t i = 0; i < n_pending; ++i) {
            if (pending[i].n_rows > 1) {
                pending[i].scatter();
            }
        }
        first += n_pending;
    }
    return GGML_STATUS_SUCCESS;
}

// The distance between experts in memory, if it is the same for all of them, as it is in slots of one size: the
// greatest common divisor of their distances, and how many times it goes into the largest.
struct expert_stride {
    const char * first;
    size_t bytes;
    size_t count;
};

expert_stride find_stride(const hypura_block * blocks, size_t n_blocks) {
    auto address = [](const hypura_block & a, const hypura_block & b) { return a.data < b.data; };
    const char * first = (const char *) std::min_element(blocks, blocks + n_blocks, address)->data;
    const char * last = (const char *) std::max_element(blocks, blocks + n_blocks, address)->data;
    size_t bytes = 0;
    for (size_t i = 0; i < n_blocks; ++i) {
        bytes = std::gcd(bytes, (size_t) ((const char *) blocks[i].data - first));
    }
    bytes = std::max<size_t>(bytes, 1); // a single expert has no distances
    return { first, bytes, (last - first) / bytes + 1 };
}

// whether one node over all of them is cheaper than one for each: a MUL_MAT_ID has to look at every expert that its
// weight could have, and wants memory for each to have all rows
bool is_worth_one_node(const expert_stride & stride, size_t n_blocks, size_t n_rows) {
    return stride.count <= MAX_SPREAD * n_blocks && stride.count * n_rows <= MAX_ROW_SLOTS;
}

// One node over all experts that were delivered. Rows that are not theirs are left out, so the others are gathered;
// when there are none, the node works in place.
ggml_status compute_together(backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks,
        size_t n_blocks, const expert_stride & stride) {
    std::vector<expert_rows> & pending = ctx.pending;
    pending.clear();
    size_t n_rows = 0;
    for (size_t i = 0; i < n_blocks; ++i) {
        const size_t start = ctx.row_starts[blocks[i].expert];
        const size_t end = ctx.row_starts[blocks[i].expert + 1];
        pending.push_back({ node, ctx.rows.data() + start, (int64_t) (end - start), nullptr, nullptr });
        n_rows += end - start;
    }
    auto position = [&](size_t i) { return (int32_t) (((const char *) blocks[i].data - stride.first) / stride.bytes); };

    ggml_tensor * copy = ctx.graph.redirected_copy(node, stride.first);
    copy->src[0]->ne[2] = stride.count;
    copy->src[0]->nb[2] = stride.bytes;
    copy->src[0]->nb[3] = copy->src[0]->nb[2] * stride.count;
    ggml_tensor * ids = ctx.graph.copy(node->src[2]);
    ctx.positions.resize(n_rows);
    ids->data = ctx.positions.data();
    ids->nb[0] = sizeof(int32_t);
    copy->src[2] = ids;

    const bool in_place = n_rows == ctx.ids.size();
    if (in_place) {
        ids->nb[1] = ids->ne[0] * sizeof(int32_t);
        for (size_t i = 0; i < n_blocks; ++i) {
            for (int64_t row = 0; row < pending[i].n_rows; ++row) {
                const routed_row & at = pending[i].rows[row];
                ctx.positions[at.token * ids->ne[0] + at.choice] = position(i);
            }
        }
    } else {
        ids->ne[0] = 1;
        ids->ne[1] = n_rows;
        ids->nb[1] = sizeof(int32_t);
        ctx.gathered.resize(
                std::max(ctx.gathered.size(), n_rows * (pending[0].in_row_bytes() + pending[0].out_row_bytes())));
        char * in = ctx.gathered.data();
        char * out = in + n_rows * pending[0].in_row_bytes();
        size_t done = 0;
        for (size_t i = 0; i < n_blocks; ++i) {
            pending[i].gather(in + done * pending[i].in_row_bytes(), out + done * pending[i].out_row_bytes());
            std::fill_n(ctx.positions.begin() + done, pending[i].n_rows, position(i));
            done += pending[i].n_rows;
        }
        copy->src[1] = ctx.graph.copy(node->src[1]);
        reshape_rows(copy->src[1], n_rows, in);
        reshape_rows(copy, n_rows, out);
    }
    ids->nb[2] = ids->nb[3] = ids->ne[1] * ids->nb[1];
    ctx.graph.add(copy);
    const ggml_status status = ctx.graph.compute(ctx.cpu);
    for (size_t i = 0; i < n_blocks && status == GGML_STATUS_SUCCESS && !in_place; ++i) {
        pending[i].scatter();
    }
    return status;
}

} // namespace

void sort_rows(backend_context & ctx, const ggml_tensor * ids, int64_t n_experts) {
    const int64_t n_used = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];

    ctx.ids.resize(n_used * n_tokens);
    for (int64_t token = 0; token < n_tokens; ++token) {
        for (int64_t choice = 0; choice < n_used; ++choice) {
            ctx.ids[token * n_used + choice] =
                    *(const int32_t *) ((const char *) ids->data + token * ids->nb[1] + choice * ids->nb[0]);
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

ggml_status compute_experts(
        backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks, size_t n_blocks) {
    const expert_stride stride = find_stride(blocks, n_blocks);
    if (is_worth_one_node(stride, n_blocks, ctx.ids.size())) {
        return compute_together(ctx, node, blocks, n_blocks, stride);
    }
    return compute_one_by_one(ctx, node, blocks, n_blocks);
}

} // namespace hypura
