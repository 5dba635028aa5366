// Which experts lie in llama.cpp's cache of experts, for layers that are streamed: their slots, and who gives way to
// whom.
//
// llama.cpp's own account of its slots differs from version to version. Of groups with streamed layers it is not asked:
// it goes by the layers' slot maps, which are written here.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

struct ggml_backend;
struct ggml_cgraph;
struct ggml_tensor;

struct llama_hypura_cache {
    // a layer of a group: its experts, in the order of the group's banks, and by expert the slot it has, or -1
    struct layer {
        std::vector<ggml_tensor *> experts;
        ggml_tensor * slot_map;
    };

    // the largest batch for which experts are read from the cache, if that is less than llama.cpp's own limit
    int64_t max_batch = INT64_MAX;

    llama_hypura_cache();
    ~llama_hypura_cache();

    // Layers that share banks with so many slots. Nothing comes of it where none of them is streamed, or nothing is
    // allocated.
    void add(const std::vector<ggml_backend *> & backends, ggml_backend * backend,
            const std::vector<ggml_tensor *> & banks, int32_t n_slots, const std::vector<layer> & layers);

    // Gives slots to the experts that are chosen, fetches those that had none, and copies the slot map. False if the
    // group is not ours.
    bool fill(const ggml_tensor * slot_map, ggml_tensor * copy, const std::vector<int32_t> & ids, ggml_cgraph * graph,
            size_t & n_hits, size_t & n_misses, size_t & bytes);

    // Of a large batch: keeps experts, in this order, of a copy of a whole weight, as far as slots are free and up to
    // the share of their layer.
    void admit(ggml_backend * backend, const ggml_tensor * weight, ggml_tensor * copy,
            const std::vector<int32_t> & experts);

    // The cache is about to go: its experts may be kept in host memory, those used last first.
    void rescue();

private:
    struct group;
    struct place {
        group * of;
        size_t layer;
        size_t bank;
    };

    std::vector<std::unique_ptr<group>> groups;
    std::unordered_map<const ggml_tensor *, place> places; // of slot maps and of experts
};
