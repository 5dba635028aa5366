// The slots of llama.cpp's cache of experts, for groups of layers of which some are streamed.
//
// An expert is named by its key: its layer's place in the group, times the experts of a layer, plus its number. Slots
// are kept in the order of their use; of those that were used least recently the one goes whose expert is worth least.

#include "llama-hypura-cache.h"

#include "llama-hypura.h"

#include "ggml-hypura.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <list>
#include <utility>

constexpr int32_t EMPTY = -1;
constexpr int32_t RESERVED = -2; // for an expert that is being admitted
// how many slots are asked for what theirs is worth
constexpr size_t N_CANDIDATES = 32;

static bool is_streamed(const ggml_tensor * weight) {
    const auto * loader = llama_hypura_get_loader();
    return loader && loader->is_streamed(weight);
}

struct llama_hypura_cache::group {
    // a slot that gets another expert, and the key of what was in it before
    struct filling {
        int32_t expert;
        int32_t slot;
        int32_t evicted;
    };

    // an expert that is being admitted: its slot, and a bit for each of its tensors that was copied
    struct admission {
        int32_t slot;
        uint32_t copied;
    };

    std::vector<ggml_backend_t> backends; // all of the context
    ggml_backend_t backend;
    std::vector<ggml_tensor *> banks;
    std::vector<layer> layers;
    int32_t n_expert;
    int64_t noted_bytes = 0;

    std::list<int32_t> by_use; // slots, the one used least recently first
    std::vector<std::list<int32_t>::iterator> uses;
    std::vector<int32_t> key_of; // by slot
    std::unordered_map<int32_t, admission> admissions; // by key
    ggml_context_ptr views;

    group(const std::vector<ggml_backend_t> & backends, ggml_backend_t backend,
            const std::vector<ggml_tensor *> & banks, int32_t n_slots, const std::vector<layer> & layers);
    ~group();

    int32_t * slots_of(size_t layer) const { return (int32_t *) layers[layer].slot_map->data; }
    const std::vector<ggml_tensor *> & experts_of(int32_t key) const { return layers[key / n_expert].experts; }

    void touch(int32_t slot) { by_use.splice(by_use.end(), by_use, uses[slot]); }
    void clear(int32_t slot);
    double worth(int32_t key) const { return llama_hypura_get_loader()->worth(experts_of(key)[0], key % n_expert); }
    const ggml_tensor * streamed() const;

    std::vector<filling> plan(size_t layer, std::vector<int32_t> chosen, size_t & n_hits);
    int32_t least_worth(size_t n_used) const;
    void drop(ggml_backend_t ours, int32_t key, int32_t slot);
    bool upload(const layer & layer, const std::vector<filling> & fills, const std::vector<int32_t> & ids,
            ggml_cgraph * graph, size_t & bytes);
    void fill(size_t layer, ggml_tensor * copy, const std::vector<int32_t> & ids, ggml_cgraph * graph, size_t & n_hits,
            size_t & n_misses, size_t & bytes);

    void forget_admissions();
    void copy_within(const ggml_tensor * src, int32_t expert, ggml_tensor * bank, int32_t slot);
    void admit(size_t layer, size_t bank, ggml_tensor * copy, const std::vector<int32_t> & experts);
    void rescue();
};

llama_hypura_cache::group::group(const std::vector<ggml_backend_t> & backends, ggml_backend_t backend,
        const std::vector<ggml_tensor *> & banks, int32_t n_slots, const std::vector<layer> & layers)
    : backends(backends), backend(backend), banks(banks), layers(layers),
      n_expert((int32_t) layers[0].experts[0]->ne[2]), key_of(n_slots, EMPTY) {
    for (int32_t slot = 0; slot < n_slots; ++slot) {
        uses.push_back(by_use.insert(by_use.end(), slot));
    }
    for (const ggml_tensor * bank : banks) {
        noted_bytes += ggml_nbytes(bank);
    }
    views.reset(
            ggml_init({ /*.mem_size =*/2 * ggml_tensor_overhead(), /*.mem_buffer =*/nullptr, /*.no_alloc =*/true }));
    GGML_ASSERT(views);
    llama_hypura_get_loader()->note_vram(streamed(), noted_bytes);
}

llama_hypura_cache::group::~group() {
    llama_hypura_get_loader()->note_vram(streamed(), -noted_bytes);
    for (int32_t slot = 0; slot < (int32_t) key_of.size(); ++slot) {
        if (key_of[slot] >= 0) {
            drop(nullptr, key_of[slot], slot);
        }
    }
}

// one weight that stands for its model
const ggml_tensor * llama_hypura_cache::group::streamed() const {
    for (const layer & l : layers) {
        for (const ggml_tensor * weight : l.experts) {
            if (is_streamed(weight)) {
                return weight;
            }
        }
    }
    return nullptr;
}

void llama_hypura_cache::group::clear(int32_t slot) {
    const int32_t key = std::exchange(key_of[slot], EMPTY);
    if (key >= 0) {
        slots_of(key / n_expert)[key % n_expert] = -1;
    }
}

// An empty slot, or the one whose expert is worth least; the n_used that were used last are in use.
int32_t llama_hypura_cache::group::least_worth(size_t n_used) const {
    int32_t res = by_use.front();
    double least = 0;
    size_t n_left = std::min(N_CANDIDATES, key_of.size() - n_used);
    for (auto slot = by_use.begin(); n_left > 0; ++slot, --n_left) {
        if (key_of[*slot] < 0) {
            return *slot;
        }
        const double w = worth(key_of[*slot]);
        if (slot == by_use.begin() || w < least) {
            res = *slot;
            least = w;
        }
    }
    return res;
}

// Gives a slot to each of the experts that are chosen.
std::vector<llama_hypura_cache::group::filling> llama_hypura_cache::group::plan(
        size_t layer, std::vector<int32_t> chosen, size_t & n_hits) {
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    GGML_ASSERT(chosen.size() <= key_of.size() && "the MoE cache is too small for the experts selected in a layer");
    GGML_ASSERT(chosen.empty() || (chosen.front() >= 0 && chosen.back() < n_expert));

    int32_t * slots = slots_of(layer);
    n_hits = 0;
    for (int32_t expert : chosen) {
        if (slots[expert] >= 0) {
            touch(slots[expert]);
            n_hits++;
        }
    }
    std::vector<filling> res;
    for (int32_t expert : chosen) {
        if (slots[expert] >= 0) {
            continue;
        }
        const int32_t slot = least_worth(n_hits + res.size());
        res.push_back({ expert, slot, key_of[slot] });
        clear(slot);
        key_of[slot] = (int32_t) layer * n_expert + expert;
        slots[expert] = slot;
        touch(slot);
    }
    return res;
}

// An expert leaves its slot. With `ours` its bytes may be kept in host memory.
void llama_hypura_cache::group::drop(ggml_backend_t ours, int32_t key, int32_t slot) {
    for (size_t ib = 0; ib < banks.size(); ++ib) {
        const ggml_tensor * weight = experts_of(key)[ib];
        if (is_streamed(weight)) {
            llama_hypura_get_loader()->drop_copy(
                    ours, ours ? backend : nullptr, weight, key % n_expert, ours ? banks[ib] : nullptr, slot);
        }
    }
}

// False when a read has failed: then what is in the slots must not be used again.
bool llama_hypura_cache::group::upload(const layer & layer, const std::vector<filling> & fills,
        const std::vector<int32_t> & ids, ggml_cgraph * graph, size_t & bytes) {
    const size_t n_tokens = llama_hypura_count_tokens(banks[0], graph);
    const ggml_backend_t ours = llama_hypura_find_backend(backends);
    GGML_ASSERT(ours);
    llama_hypura_get_loader()->finish_copies(ours); // of another layer: the scheduler has waited for them
    std::vector<int32_t> slots(n_expert, -1);
    for (const filling & f : fills) {
        slots[f.expert] = f.slot;
        if (f.evicted >= 0) {
            drop(ours, f.evicted, f.slot);
        }
    }
    bool succeeded = true;
    for (size_t ib = 0; ib < banks.size(); ++ib) {
        const ggml_tensor * weight = layer.experts[ib];
        const size_t expert_bytes = weight->nb[2];
        bytes += fills.size() * expert_bytes;
        if (is_streamed(weight)) {
            succeeded = llama_hypura_fill_bank(ours, backend, weight, banks[ib], ids, n_tokens, slots);
            continue;
        }
        // of the same group, and in memory: what was there before must have left the bank
        ggml_backend_synchronize(backend);
        llama_hypura_get_loader()->finish_copies(ours);
        for (const filling & f : fills) {
            const char * expert = (const char *) weight->data + f.expert * expert_bytes;
            ggml_backend_tensor_set_async(backend, banks[ib], expert, f.slot * expert_bytes, expert_bytes);
        }
    }
    return succeeded;
}

void llama_hypura_cache::group::fill(size_t layer, ggml_tensor * copy, const std::vector<int32_t> & ids,
        ggml_cgraph * graph, size_t & n_hits, size_t & n_misses, size_t & bytes) {
    forget_admissions();
    const auto fills = plan(layer, ids, n_hits);
    n_misses = fills.size();
    const bool succeeded = upload(layers[layer], fills, ids, graph, bytes);
    // the next copy synchronizes the backend before it changes the slot map again
    ggml_backend_tensor_set_async(backend, copy, layers[layer].slot_map->data, 0, ggml_nbytes(layers[layer].slot_map));
    if (!succeeded) {
        ggml_backend_synchronize(backend);
        for (const filling & f : fills) {
            drop(nullptr, key_of[f.slot], f.slot);
            clear(f.slot);
        }
    }
}

// what was not admitted as a whole is not admitted
void llama_hypura_cache::group::forget_admissions() {
    for (const auto & [key, admission] : admissions) {
        key_of[admission.slot] = EMPTY;
    }
    admissions.clear();
}

void llama_hypura_cache::group::copy_within(const ggml_tensor * src, int32_t expert, ggml_tensor * bank, int32_t slot) {
    ggml_reset(views.get());
    ggml_tensor * src_view =
            ggml_view_2d(views.get(), (ggml_tensor *) src, src->ne[0], src->ne[1], src->nb[1], expert * src->nb[2]);
    ggml_tensor * dst_view = ggml_view_2d(views.get(), bank, bank->ne[0], bank->ne[1], bank->nb[1], slot * bank->nb[2]);
    ggml_backend_view_init(src_view);
    ggml_backend_view_init(dst_view);
    ggml_backend_tensor_copy_async(backend, backend, src_view, dst_view);
}

void llama_hypura_cache::group::admit(
        size_t layer, size_t bank, ggml_tensor * copy, const std::vector<int32_t> & experts) {
    const int32_t first = (int32_t) layer * n_expert;
    int32_t * slots = slots_of(layer);
    size_t n_left = key_of.size() / layers.size();
    for (int32_t e = 0; e < n_expert && n_left > 0; ++e) {
        n_left -= slots[e] >= 0 || admissions.count(first + e) > 0;
    }
    for (int32_t e : experts) {
        auto at = admissions.find(first + e);
        if (at == admissions.end()) {
            const int32_t slot = by_use.front();
            if (slots[e] >= 0 || n_left == 0 || key_of[slot] != EMPTY) {
                continue;
            }
            touch(slot);
            key_of[slot] = RESERVED;
            at = admissions.insert({ first + e, { slot, 0 } }).first;
            n_left--;
        }
        copy_within(copy, e, banks[bank], at->second.slot);
        at->second.copied |= 1u << bank;
        if (at->second.copied == (1u << banks.size()) - 1) {
            key_of[at->second.slot] = first + e;
            slots[e] = at->second.slot;
            admissions.erase(at);
            for (const ggml_tensor * weight : layers[layer].experts) {
                if (is_streamed(weight)) {
                    llama_hypura_get_loader()->add_copy(weight, e);
                }
            }
        }
    }
}

void llama_hypura_cache::group::rescue() {
    const ggml_backend_t ours = llama_hypura_find_backend(backends);
    if (!ours) {
        return;
    }
    // the last graph's copies of slot maps may still be under way
    ggml_backend_synchronize(backend);
    for (auto slot = by_use.rbegin(); slot != by_use.rend(); ++slot) {
        if (key_of[*slot] >= 0) {
            drop(ours, key_of[*slot], *slot);
            clear(*slot);
        }
    }
    ggml_backend_synchronize(backend);
    llama_hypura_get_loader()->finish_copies(ours);
}

llama_hypura_cache::llama_hypura_cache() = default;
llama_hypura_cache::~llama_hypura_cache() = default;

void llama_hypura_cache::add(const std::vector<ggml_backend_t> & backends, ggml_backend_t backend,
        const std::vector<ggml_tensor *> & banks, int32_t n_slots, const std::vector<layer> & layers) {
    const auto is_of_streamed = [](const layer & l) {
        return std::any_of(l.experts.begin(), l.experts.end(), is_streamed);
    };
    if (n_slots == 0 || !layers[0].slot_map->data || std::none_of(layers.begin(), layers.end(), is_of_streamed)) {
        return;
    }
    groups.push_back(std::make_unique<group>(backends, backend, banks, n_slots, layers));
    for (size_t il = 0; il < layers.size(); ++il) {
        places[layers[il].slot_map] = { groups.back().get(), il, 0 };
        for (size_t ib = 0; ib < banks.size(); ++ib) {
            places[layers[il].experts[ib]] = { groups.back().get(), il, ib };
        }
    }
}

bool llama_hypura_cache::fill(const ggml_tensor * slot_map, ggml_tensor * copy, const std::vector<int32_t> & ids,
        ggml_cgraph * graph, size_t & n_hits, size_t & n_misses, size_t & bytes) {
    const auto at = places.find(slot_map);
    if (at == places.end()) {
        return false;
    }
    at->second.of->fill(at->second.layer, copy, ids, graph, n_hits, n_misses, bytes);
    return true;
}

void llama_hypura_cache::admit(
        ggml_backend_t backend, const ggml_tensor * weight, ggml_tensor * copy, const std::vector<int32_t> & experts) {
    const auto at = places.find(weight);
    if (at != places.end() && at->second.of->backend == backend) {
        at->second.of->admit(at->second.layer, at->second.bank, copy, experts);
    }
}

void llama_hypura_cache::rescue() {
    for (const auto & g : groups) {
        g->rescue();
    }
}
