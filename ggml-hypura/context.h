// What the backend keeps between nodes, and the parts of computing one: with experts as they arrive (experts.cpp), and
// before its turn (early.cpp).

#pragma once

#include "ggml-hypura.h"
#include "model.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

namespace hypura {

struct fetch_deleter {
    void operator()(hypura_fetch_t * fetch) const { hypura_fetch_free(fetch); }
};
using fetch_ptr = std::unique_ptr<hypura_fetch_t, fetch_deleter>;

// nodes of one inner graph
constexpr size_t MAX_NODES = 256;

// rows of a MUL_MAT_ID up to which a layer's later nodes are begun early: more is a prompt, which wants every expert
// anyway
constexpr size_t MAX_EARLY_ROWS = 64;

// nodes of a layer that may be: the second matrix, the activation, the third matrix
constexpr size_t MAX_EARLY = 3;

// where the router sent which row: token and choice
struct routed_row {
    int32_t choice;
    int32_t token;
};

// the rows of one expert in a MUL_MAT_ID
struct expert_rows {
    const ggml_tensor * node;
    const routed_row * rows;
    int64_t n_rows;
    char * in;  // gathered rows of src[1]
    char * out; // results, to be scattered

    size_t in_row_bytes() const { return node->src[1]->ne[0] * ggml_type_size(node->src[1]->type); }
    size_t out_row_bytes() const { return node->ne[0] * sizeof(float); }

    const char * source(const routed_row & row) const {
        const ggml_tensor * src = node->src[1];
        return (const char *) src->data + (row.choice % src->ne[1]) * src->nb[1] + row.token * src->nb[2];
    }

    char * destination(const routed_row & row) const {
        return (char *) node->data + row.choice * node->nb[1] + row.token * node->nb[2];
    }

    // bytes of scratch when computed alone: none for a single row, which is used in place
    size_t scratch_bytes() const { return n_rows == 1 ? 0 : n_rows * (in_row_bytes() + out_row_bytes()); }

    void use_in_place() {
        in = const_cast<char *>(source(rows[0]));
        out = destination(rows[0]);
    }

    void gather(char * to_in, char * to_out) {
        in = to_in;
        out = to_out;
        for (int64_t i = 0; i < n_rows; ++i) {
            memcpy(in + i * in_row_bytes(), source(rows[i]), in_row_bytes());
        }
    }

    void scatter() const {
        for (int64_t i = 0; i < n_rows; ++i) {
            memcpy(destination(rows[i]), out + i * out_row_bytes(), out_row_bytes());
        }
    }
};

// What was computed of a node before its turn, while an earlier one of its layer waited for the drive. In memory of its
// own: the node's may still be used by others until then.
struct early_result {
    const ggml_tensor * node = nullptr; // none: unused
    ggml_tensor copy;
    std::vector<char> memory;
    std::vector<bool> is_done; // by expert

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
            /* .mem_size   = */ ggml_graph_overhead_custom(MAX_NODES, false) + 4 * MAX_NODES * ggml_tensor_overhead(),
            /* .mem_buffer = */ nullptr,
            /* .no_alloc   = */ true,
        };
        ctx = ggml_init(params);
        clear();
    }

    ~inner_graph() { ggml_free(ctx); }

    bool empty() const { return n_nodes == 0; }

    // a copy that may be redirected
    ggml_tensor * copy(const ggml_tensor * t) {
        ggml_tensor * c = ggml_new_tensor(ctx, t->type, GGML_MAX_DIMS, t->ne);
        *c = *t;
        return c;
    }

    // a node's copy that computes with the weights at `data`
    ggml_tensor * redirected_copy(const ggml_tensor * node, const void * data) {
        ggml_tensor * c = copy(node);
        ggml_tensor * weight = copy(node->src[0]);
        weight->data = const_cast<char *>((const char *) data + weight->view_offs);
        weight->extra = nullptr; // ggml-cpu takes a set extra for repacked weights and avoids its tiled kernels
        c->src[0] = weight;
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
        graph = ggml_new_graph_custom(ctx, MAX_NODES, false);
        n_nodes = 0;
    }

    ggml_context * ctx;
    ggml_cgraph * graph;
    size_t n_nodes;
};

struct backend_context {
    ggml_backend_t cpu = nullptr;
    ggml_threadpool_t threadpool = nullptr;
    int n_threads = 0;

    inner_graph graph;

    // of the graph that is computed: where the latest sub-graph has its nodes; and whether somebody tells when graphs
    // begin
    ggml_tensor ** nodes = nullptr;
    bool is_told = false;

    // a model stays open for as long as a fetch of it exists
    std::map<std::shared_ptr<ggml_hypura_model>, fetch_ptr> fetches;

    // scratch, kept to avoid allocation
    std::vector<int32_t> ids;
    std::vector<routed_row> rows; // by expert
    std::vector<size_t> row_starts; // by expert, where its rows start
    std::vector<char> gathered;
    std::vector<int32_t> zeros; // ids of an expert's rows: it is the only one
    std::vector<int32_t> positions; // ids where experts are found by their distance
    std::vector<expert_rows> pending;
    std::vector<bool> is_done; // by expert: of the node that is computed
    std::array<early_result, MAX_EARLY> early;
    std::vector<int32_t> wanted; // experts that another backend has no copy of
    std::vector<std::pair<const ggml_hypura_tensor *, int32_t>> rescued; // whose copies are being moved into RAM
    hypura_fetch_t * copies_from = nullptr; // what it keeps is being copied
    ggml_backend_t copies_to = nullptr;

    char error[1024];

    ~backend_context() {
        if (threadpool) {
            proc<decltype(ggml_threadpool_free)>("ggml_threadpool_free")(threadpool); // asks the CPU backend
        }
        ggml_backend_free(cpu);
    }

    template <typename F> F * proc(const char * name) const {
        ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu));
        return (F *) ggml_backend_reg_get_proc_address(reg, name);
    }

    hypura_fetch_t * fetch_for(const std::shared_ptr<ggml_hypura_model> & model) {
        const std::string failure = model->take_failure();
        if (!failure.empty()) {
            snprintf(error, sizeof(error), "%s", failure.c_str());
            return nullptr;
        }
        fetch_ptr & fetch = fetches[model];
        if (!fetch) {
            hypura_fetch_t * created = nullptr;
            if (hypura_fetch_new(model->handle, &created, error, sizeof(error)) != HYPURA_STATUS_OK) {
                return nullptr;
            }
            fetch.reset(created);
            hypura_fetch_begin_pass(created);
            ggml_hypura_measure_speeds(cpu, n_threads, *model);
        }
        return fetch.get();
    }

    // A whole graph is about to be computed, of which other backends may compute all that is streamed.
    void begin_graph() {
        is_told = true;
        begin_pass();
    }

    // The scheduler hands over the sub-graphs of a graph in order, each a view of its nodes. Where nobody tells of
    // whole graphs, one that lies no further than the one before is the first of the next.
    void enter(const ggml_cgraph * graph) {
        if (!is_told && graph->nodes <= nodes) {
            begin_pass();
        }
        nodes = graph->nodes;
    }

    void begin_pass() {
        for (auto & [_, fetch] : fetches) {
            hypura_fetch_begin_pass(fetch.get());
        }
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

// sorts the router's choices by expert: ctx.ids, ctx.rows and ctx.row_starts
void sort_rows(backend_context & ctx, const ggml_tensor * ids, int64_t n_experts);

// shows libhypura what a MUL_MAT_ID that was demanded is computed on, so that it can foresee the next layer's experts
void look_ahead(hypura_fetch_t * fetch, const ggml_tensor * node);

// computes the rows of a MUL_MAT_ID that go to the experts that were delivered
ggml_status compute_experts(
        backend_context & ctx, const ggml_tensor * node, const hypura_block * blocks, size_t n_blocks);

// Computes what can be of the nodes that follow in the layer while `current` waits for the drive: with experts that are
// in RAM, on inputs that are there. Otherwise the last reads of a layer would be followed by everything that the
// matrices after the first have to compute.
ggml_status compute_early(backend_context & ctx, ggml_cgraph * graph, int current, hypura_fetch_t * fetch);

// Tells libhypura what a graph that is about to be computed is certain to want, whatever it computes: rows of tables,
// and experts that follow from the tokens.
void expect(ggml_backend_t ours, ggml_cgraph * graph);

// the same of a table that graphs to come look up
void expect_rows(ggml_backend_t ours, const ggml_tensor * table, const int32_t * ids, size_t n_ids);

// which rows of its table a GET_ROWS wants, be it a table or a view of one; false where it is not by rows
bool find_row_ids(const ggml_tensor * node, std::vector<int32_t> & found);

// a GET_ROWS of a table
ggml_status compute_get_rows(backend_context & ctx, const ggml_tensor * node, const ggml_hypura_tensor * table);

// a copy of a part of a table, which some models take for padding
ggml_status compute_copy_of_table(backend_context & ctx, const ggml_tensor * node, const ggml_hypura_tensor * table);

// puts the rows of experts that were computed early in their place; returns how many of the blocks, first in the array,
// are left
size_t take_early(backend_context & ctx, const ggml_tensor * node, hypura_block * blocks, size_t n_blocks);

// for other backends (copy.cpp), as ggml_backend_hypura_loader tells
bool copy_weight(const ggml_backend_hypura_copy & copy);
void finish_copies(backend_context & ctx);
void finish_copies_of(ggml_backend_t ours);
void add_copy(const ggml_tensor * weight, int32_t expert);
void drop_copy(ggml_backend_t ours, ggml_backend_t from, const ggml_tensor * weight, int32_t expert,
        const ggml_tensor * cache, int32_t slot);
void use_device(const ggml_tensor * weight, ggml_backend_dev_t dev);

} // namespace hypura
