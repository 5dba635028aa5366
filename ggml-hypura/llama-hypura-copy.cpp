// What libllama calls when a streamed weight is to be copied to another backend.

#include "llama-hypura.h"

#include "ggml-hypura.h"

#include "llama-hypura-cache.h"

#include "llama-moe-cache.h"

#include <algorithm>

using backend_list = std::vector<ggml_backend_t>;

// of the graph that is being computed by this thread
static thread_local bool copy_failed = false;

// the context's Hypura backend, if it takes part with this weight
static ggml_backend_t find_backend(const backend_list & backends, const ggml_tensor * weight) {
    const auto * loader = llama_hypura_get_loader();
    return loader && loader->is_streamed(weight) ? llama_hypura_find_backend(backends) : nullptr;
}

static void copy(ggml_backend_hypura_copy & what) {
    what.is_lost = copy_failed;
    if (!llama_hypura_get_loader()->copy(&what)) {
        copy_failed = true;
    }
}

// of experts of a weight to their slots in its copy, wanted for these ids
static ggml_backend_hypura_copy copy_of_experts(ggml_backend_t ours, ggml_backend_t backend, const ggml_tensor * weight,
        ggml_tensor * copy, const std::vector<int32_t> & ids, size_t n_tokens, const std::vector<int32_t> & slots) {
    ggml_backend_hypura_copy what = {};
    what.ours = ours;
    what.to = backend;
    what.weight = weight;
    what.copy = copy;
    what.ids = ids.data();
    what.n_ids = ids.size();
    what.n_tokens = n_tokens;
    what.slots = slots.data();
    return what;
}

size_t llama_hypura_count_tokens(const ggml_tensor * weight, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        // that a view is taken of it is a node, too
        const bool multiplies = node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID;
        if (multiplies && (node->src[0] == weight || node->src[0]->view_src == weight)) {
            return node->op == GGML_OP_MUL_MAT_ID ? node->src[2]->ne[1] : node->ne[1];
        }
    }
    return 1;
}

bool llama_hypura_copy(const backend_list & backends, ggml_backend_t backend, const ggml_tensor * src,
        ggml_tensor * dst, ggml_cgraph * graph) {
    const ggml_backend_t ours = find_backend(backends, src);
    if (!ours) {
        return false;
    }
    if (src->ne[2] == 1) {
        ggml_backend_hypura_copy what = {};
        what.ours = ours;
        what.to = backend;
        what.weight = src;
        what.copy = dst;
        what.n_tokens = llama_hypura_count_tokens(dst, graph);
        copy(what);
        return true;
    }
    // nothing is known of the experts that are used: all of them
    std::vector<int32_t> all(src->ne[2]);
    for (size_t e = 0; e < all.size(); ++e) {
        all[e] = (int32_t) e;
    }
    const std::vector<char> used(all.size(), true);
    ggml_backend_hypura_copy what = copy_of_experts(ours, backend, src, dst, all, 1, all);
    what.is_used = used.data();
    copy(what);
    return true;
}

// A prompt leaves the experts that it uses most in the cache, as far as that has room: what follows is likely to use
// them, too.
static void admit(llama_hypura_cache & cache, ggml_backend_t backend, const ggml_tensor * src, ggml_tensor * dst,
        const std::vector<int32_t> & routing) {
    std::vector<int32_t> n_rows(src->ne[2], 0);
    for (int32_t expert : routing) {
        n_rows[expert]++;
    }
    std::vector<int32_t> experts;
    for (int32_t e = 0; e < (int32_t) n_rows.size(); ++e) {
        if (n_rows[e] > 0) {
            experts.push_back(e);
        }
    }
    std::stable_sort(experts.begin(), experts.end(), [&](int32_t a, int32_t b) { return n_rows[a] > n_rows[b]; });
    cache.admit(backend, src, dst, experts);
}

bool llama_hypura_copy_experts(const backend_list & backends, llama_moe_cache * cache, ggml_backend_t backend,
        const ggml_tensor * src, ggml_tensor * dst, const ggml_tensor * ids, const std::vector<int32_t> & ids_data,
        const std::vector<bool> & used) {
    const ggml_backend_t ours = find_backend(backends, src);
    if (!ours) {
        return false;
    }
    std::vector<int32_t> routing;
    for (int64_t token = 0; token < ids->ne[1]; ++token) {
        for (int64_t choice = 0; choice < ids->ne[0]; ++choice) {
            routing.push_back(ids_data[(token * ids->nb[1] + choice * ids->nb[0]) / sizeof(int32_t)]);
        }
    }
    const std::vector<char> is_used(used.begin(), used.end());
    std::vector<int32_t> slots(used.size(), -1);
    for (int64_t e = 0; e < (int64_t) used.size();) {
        int64_t last = e;
        while (is_used[e] && last + 1 < (int64_t) used.size() && is_used[last + 1]) {
            last++;
        }
        // those in the cache of experts are copied within the device
        const int64_t n_cached = is_used[e] && cache ? cache->copy_experts(backend, src, dst, e, last) : 0;
        if (n_cached == 0 && is_used[e]) {
            slots[e] = (int32_t) e;
        }
        e += std::max<int64_t>(n_cached, 1);
    }
    ggml_backend_hypura_copy what = copy_of_experts(ours, backend, src, dst, routing, ids->ne[1], slots);
    what.is_used = is_used.data();
    copy(what);
    if (cache && !copy_failed) {
        admit(cache->hypura(), backend, src, dst, routing);
    }
    return true;
}

bool llama_hypura_fill_bank(ggml_backend_t ours, ggml_backend_t backend, const ggml_tensor * weight, ggml_tensor * bank,
        const std::vector<int32_t> & ids, size_t n_tokens, const std::vector<int32_t> & slots) {
    ggml_backend_hypura_copy what = copy_of_experts(ours, backend, weight, bank, ids, n_tokens, slots);
    what.is_cache = true;
    copy(what);
    return !copy_failed;
}

bool llama_hypura_copy_failed(const backend_list & backends) {
    const ggml_backend_t ours = llama_hypura_find_backend(backends);
    if (ours) {
        llama_hypura_get_loader()->finish_copies(ours);
    }
    const bool failed = copy_failed;
    copy_failed = false;
    return failed;
}
