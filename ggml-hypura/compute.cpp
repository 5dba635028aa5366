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
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>

namespace {

// rows gathered for several experts at once may take this much
constexpr size_t MAX_GATHER_BYTES = 32u << 20;

// experts over which one node may be spread, for each that it is for: beyond it, looking at all of them costs more than nodes
constexpr size_t MAX_SPREAD = 512;

// a node sets room aside for all rows in each of the experts over which it is spread
constexpr size_t MAX_ROW_SLOTS = 512u << 10;

// nodes of one inner graph
constexpr size_t MAX_NODES = 256;

// rows of a MUL_MAT_ID up to which a layer's later nodes are begun early: more is a prompt, which wants every expert anyway
constexpr size_t MAX_EARLY_ROWS = 64;

// nodes of a layer that may be: the second matrix, the activation, the third matrix
constexpr size_t MAX_EARLY = 3;

struct fetch_deleter {
    void operator()(hypura_fetch_t * fetch) const { hypura_fetch_free(fetch); }
};
using fetch_ptr = std::unique_ptr<hypura_fetch_t, fetch_deleter>;

// where the router sent which row: token and choice
struct routed_row {
    int32_t choice;
    int32_t token;
};

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

    // bytes of scratch when computed alone: none for a single row, which is used in place
    size_t scratch_bytes() const { return n_rows == 1 ? 0 : n_rows*(in_row_bytes() + out_row_bytes()); }

    void use_in_place() {
        in  = const_cast<char *>(source(rows[0]));
        out = destination(rows[0]);
    }

    void gather(char * to_in, char * to_out) {
        in  = to_in;
        out = to_out;
        for (int64_t i = 0; i < n_rows; ++i) {
            memcpy(in + i*in_row_bytes(), source(rows[i]), in_row_bytes());
        }
    }

    void scatter() const {
        for (int64_t i = 0; i < n_rows; ++i) {
            memcpy(destination(rows[i]), out + i*out_row_bytes(), out_row_bytes());
        }
    }
};

// What was computed of a node before its turn, while an earlier one of its layer waited for the drive. In memory of its own: the node's may
// still be used by others until then.
struct early_result {
    const ggml_tensor * node = nullptr; // none: unused
    ggml_tensor         copy;
    std::vector<char>   memory;
    std::vector<bool>   is_done;        // by expert

    void begin(const ggml_tensor * of, int64_t n_experts) {
        node = of;
        copy = *of;
        memory.resize(std::max(memory.size(), ggml_nbytes(of)));
        copy.data = memory.data();
        is_done.assign(n_experts, false);
    }
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
    std::vector<int32_t>    positions;  // ids where experts are found by their distance
    std::vector<expert_rows> pending;
    std::vector<bool>       is_done;    // by expert: of the node that is computed
    std::array<early_result, MAX_EARLY> early;

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
            hypura_measure_speeds(cpu, n_threads, *model);
        }
        return fetch.get();
    }

    early_result * early_of(const ggml_tensor * node) {
        auto found = std::find_if(early.begin(), early.end(), [&](const early_result & e) { return e.node == node; });
        return found == early.end() ? nullptr : &*found;
    }

    void forget_early(const ggml_tensor * node) {
        if (early_result * result = early_of(node)) {
            result->node = nullptr;
        }
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

// one node for each expert that was delivered, as many at a time as the scratch memory allows
ggml_status compute_one_by_one(backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks, size_t n_blocks) {
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
            if (pending[i].n_rows == 1) {
                pending[i].use_in_place();
            } else {
                pending[i].gather(scratch, scratch + pending[i].n_rows*pending[i].in_row_bytes());
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

// The distance between experts in memory, if it is the same for all of them, as it is in slots of one size: the greatest common
// divisor of their distances, and how many times it goes into the largest.
struct expert_stride {
    const char * first;
    size_t bytes;
    size_t count;
};

expert_stride find_stride(const hypura_block * blocks, size_t n_blocks) {
    auto address = [](const hypura_block & a, const hypura_block & b) { return a.data < b.data; };
    const char * first = (const char *) std::min_element(blocks, blocks + n_blocks, address)->data;
    const char * last  = (const char *) std::max_element(blocks, blocks + n_blocks, address)->data;
    size_t bytes = 0;
    for (size_t i = 0; i < n_blocks; ++i) {
        bytes = std::gcd(bytes, (size_t) ((const char *) blocks[i].data - first));
    }
    bytes = std::max<size_t>(bytes, 1); // a single expert has no distances
    return { first, bytes, (last - first)/bytes + 1 };
}

// whether one node over all of them is cheaper than one for each: a MUL_MAT_ID has to look at every expert that its weight could
// have, and wants memory for each to have all rows
bool is_worth_one_node(const expert_stride & stride, size_t n_blocks, size_t n_rows) {
    return stride.count <= MAX_SPREAD*n_blocks && stride.count*n_rows <= MAX_ROW_SLOTS;
}

// One node over all experts that were delivered. Rows that are not theirs are left out, so the others are gathered; when there
// are none, the node works in place.
ggml_status compute_together(backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks, size_t n_blocks, const expert_stride & stride) {
    std::vector<expert_rows> & pending = ctx.pending;
    pending.clear();
    size_t n_rows = 0;
    for (size_t i = 0; i < n_blocks; ++i) {
        const size_t start = ctx.row_starts[blocks[i].expert];
        const size_t end   = ctx.row_starts[blocks[i].expert + 1];
        pending.push_back({ node, ctx.rows.data() + start, (int64_t) (end - start), nullptr, nullptr });
        n_rows += end - start;
    }
    auto position = [&](size_t i) { return (int32_t) (((const char *) blocks[i].data - stride.first)/stride.bytes); };

    ggml_tensor * copy = redirect(ctx, node, stride.first);
    copy->src[0]->ne[2] = stride.count;
    copy->src[0]->nb[2] = stride.bytes;
    copy->src[0]->nb[3] = copy->src[0]->nb[2]*stride.count;
    ggml_tensor * ids = ctx.graph.copy(node->src[2]);
    ctx.positions.resize(n_rows);
    ids->data   = ctx.positions.data();
    ids->nb[0]  = sizeof(int32_t);
    copy->src[2] = ids;

    const bool in_place = n_rows == ctx.ids.size();
    if (in_place) {
        ids->nb[1] = ids->ne[0]*sizeof(int32_t);
        for (size_t i = 0; i < n_blocks; ++i) {
            for (int64_t row = 0; row < pending[i].n_rows; ++row) {
                const routed_row & at = pending[i].rows[row];
                ctx.positions[at.token*ids->ne[0] + at.choice] = position(i);
            }
        }
    } else {
        ids->ne[0] = 1;
        ids->ne[1] = n_rows;
        ids->nb[1] = sizeof(int32_t);
        ctx.gathered.resize(std::max(ctx.gathered.size(), n_rows*(pending[0].in_row_bytes() + pending[0].out_row_bytes())));
        char * in  = ctx.gathered.data();
        char * out = in + n_rows*pending[0].in_row_bytes();
        size_t done = 0;
        for (size_t i = 0; i < n_blocks; ++i) {
            pending[i].gather(in + done*pending[i].in_row_bytes(), out + done*pending[i].out_row_bytes());
            std::fill_n(ctx.positions.begin() + done, pending[i].n_rows, position(i));
            done += pending[i].n_rows;
        }
        copy->src[1] = ctx.graph.copy(node->src[1]);
        reshape_rows(copy->src[1], n_rows, in);
        reshape_rows(copy, n_rows, out);
    }
    ids->nb[2] = ids->nb[3] = ids->ne[1]*ids->nb[1];
    ctx.graph.add(copy);
    const ggml_status status = ctx.graph.compute(ctx.cpu);
    for (size_t i = 0; i < n_blocks && status == GGML_STATUS_SUCCESS && !in_place; ++i) {
        pending[i].scatter();
    }
    return status;
}

// computes with the experts that were delivered
ggml_status compute_experts(backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks, size_t n_blocks) {
    const expert_stride stride = find_stride(blocks, n_blocks);
    if (is_worth_one_node(stride, n_blocks, ctx.ids.size())) {
        return compute_together(ctx, node, blocks, n_blocks, stride);
    }
    return compute_one_by_one(ctx, node, blocks, n_blocks);
}

// shows libhypura what all chosen experts of a few tokens get, which is what their router got
void look_ahead(hypura_fetch_t * fetch, const ggml_tensor * input) {
    constexpr int64_t MAX_ROWS = 8;
    if (input->type == GGML_TYPE_F32 && input->ne[1] == 1 && input->ne[2] <= MAX_ROWS && ggml_is_contiguous(input)) {
        hypura_fetch_look_ahead(fetch, (const float *) input->data, input->ne[0], input->ne[2]);
    }
}

// What of a layer's tensors there is while one of its nodes waits for the drive.
struct waiting_layer {
    backend_context & ctx;
    ggml_cgraph *     graph;
    int               current;

    const ggml_tensor * now() const { return graph->nodes[current]; }

    // by expert: whether a tensor has its rows; none: it has those of all
    struct rows {
        bool                      is_known;
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

    // a place for the result of a node whose inputs are there as far as they can be; none if they are not, or if it is no such node
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
    const waiting_layer::rows first  = layer.rows_of(node->src[0]);
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
    const hypura_tensor * weight = hypura_find_tensor(node->src[0]);
    GGML_ASSERT(weight);
    hypura_block blocks[MAX_EARLY_ROWS];
    size_t n_blocks = 0;
    if (hypura_fetch_early(fetch, weight->index, blocks, MAX_EARLY_ROWS, &n_blocks, ctx.error, sizeof(ctx.error)) != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    const waiting_layer::rows input = layer.rows_of(node->src[1]);
    auto is_not_for_now = [&](const hypura_block & b) { return result.is_done[b.expert] || !input.has(b.expert); };
    n_blocks = std::remove_if(blocks, blocks + n_blocks, is_not_for_now) - blocks;
    std::for_each(blocks, blocks + n_blocks, [&](const hypura_block & b) { result.is_done[b.expert] = true; });
    result.copy.src[1] = layer.place_of(node->src[1]);
    return n_blocks > 0 ? compute_experts(ctx, &result.copy, blocks, n_blocks) : GGML_STATUS_SUCCESS;
}

// Computes what can be of the nodes that follow in the layer while `current` waits for the drive: with experts that are in RAM, on inputs
// that are there. Otherwise the last reads of a layer would be followed by everything that the matrices after the first have to compute.
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
        const ggml_status status =
            node->op == GGML_OP_GLU ? compute_glu_early(layer, *result) : compute_experts_early(layer, *result, fetch);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

// puts the rows of experts that were computed early in their place; returns how many of the blocks, first in the array, are left
size_t take_early(backend_context & ctx, const ggml_tensor * node, hypura_block * blocks, size_t n_blocks) {
    early_result * result = ctx.early_of(node);
    if (!result) {
        return n_blocks;
    }
    auto is_left = [&](const hypura_block & b) { return !result->is_done[b.expert]; };
    const size_t n_left = std::stable_partition(blocks, blocks + n_blocks, is_left) - blocks;
    for (size_t b = n_left; b < n_blocks; ++b) {
        for (size_t row = ctx.row_starts[blocks[b].expert]; row < ctx.row_starts[blocks[b].expert + 1]; ++row) {
            const size_t offset = ctx.rows[row].choice*node->nb[1] + ctx.rows[row].token*node->nb[2];
            memcpy((char *) node->data + offset, result->memory.data() + offset, node->ne[0]*sizeof(float));
        }
    }
    return n_left;
}

ggml_status compute_mul_mat_id(backend_context & ctx, ggml_cgraph * graph, int index, const hypura_tensor * weight) {
    const ggml_tensor * node = graph->nodes[index];
    const ggml_tensor * ids = node->src[2];
    const int64_t n_experts = node->src[0]->ne[2];
    sort_rows(ctx, ids, n_experts);

    hypura_fetch_t * fetch = ctx.fetch_for(weight->model);
    if (!fetch || hypura_fetch_begin(fetch, weight->index, ctx.ids.data(), ctx.ids.size(), ids->ne[1], ctx.error, sizeof(ctx.error)) != HYPURA_STATUS_OK) {
        return ctx.failed(node);
    }
    look_ahead(fetch, node->src[1]);
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

ggml_status compute_node(backend_context & ctx, ggml_cgraph * graph, int index) {
    ggml_tensor * node = graph->nodes[index];
    const hypura_tensor * weight = node->src[0] ? hypura_find_tensor(node->src[0]) : nullptr;
    if (weight && weight->is_awaited) {
        snprintf(ctx.error, sizeof(ctx.error), "%s was never loaded", node->src[0]->name);
        return ctx.failed(node);
    }
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
            return compute_mul_mat_id(ctx, graph, index, weight);
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
    backend_context & ctx = *context(backend);
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
    iface.get_name      = backend_get_name;
    iface.free          = backend_free;
    iface.graph_compute = backend_graph_compute;
    return iface;
}

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
        /* .iface   = */ make_interface(),
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
