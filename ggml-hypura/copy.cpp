// Weights for other backends: a GPU computes a prompt's multiplications with streamed weights, and keeps experts in a
// cache of its own.
//
// libhypura delivers into RAM; from there it is copied to where the other backend wants it. What such a cache replaces
// is moved into RAM, if libhypura thinks that worth it.

#include "context.h"

#include "ggml-hypura.h"

#include <algorithm>
#include <cstdio>
#include <vector>

namespace hypura {

namespace {

// the kernels of some GPUs read a bit past an expert: what is there must be numbers
constexpr size_t PADDING_BYTES = 512;

backend_context & context(ggml_backend_t backend) { return *(backend_context *) backend->context; }

// not by ggml_backend_tensor_memset(), which some backends lack
void set_zeros(ggml_tensor * tensor, size_t offset, size_t size) {
    static const std::vector<char> zeros(1u << 20);
    for (size_t done = 0; done < size; done += zeros.size()) {
        ggml_backend_tensor_set(tensor, zeros.data(), offset + done, std::min(zeros.size(), size - done));
    }
}

// The other backend goes on until the end of its graph, which then fails as a whole. Until then it must compute with
// numbers, and find experts that exist.
void clear(const ggml_backend_hypura_copy & copy) {
    ggml_backend_synchronize(copy.to);
    if (!copy.is_cache) {
        set_zeros(copy.copy, 0, ggml_nbytes(copy.copy));
        return;
    }
    const size_t bytes = copy.weight->nb[2];
    for (int64_t e = 0; e < copy.weight->ne[2]; ++e) {
        if (copy.slots[e] >= 0) {
            set_zeros(copy.copy, copy.slots[e] * bytes, bytes);
        }
    }
}

bool failed(backend_context & ctx, const ggml_backend_hypura_copy & copy) {
    GGML_LOG_ERROR("hypura: cannot copy %s: %s\n", copy.weight->name, ctx.error);
    clear(copy);
    return false;
}

// what is copied into RAM from copies that are dropped has arrived
void finish_rescues(backend_context & ctx) {
    for (const auto & [weight, expert] : ctx.rescued) {
        hypura_copy_rescued(weight->model->handle, weight->index, expert, ctx.error, sizeof(ctx.error));
    }
    ctx.rescued.clear();
}

void finish_rescues(backend_context & ctx, ggml_backend_t from) {
    if (!ctx.rescued.empty()) {
        ggml_backend_synchronize(from);
        finish_rescues(ctx);
    }
}

// Zeros behind experts that are followed by one that is not there, wherever they came from: some came from the cache.
void pad(const ggml_backend_hypura_copy & copy) {
    static const char zeros[PADDING_BYTES] = {};
    const size_t bytes = copy.weight->nb[2];
    const int64_t n_experts = copy.weight->ne[2];
    for (int64_t e = 0; e + 1 < n_experts; ++e) {
        if (copy.is_used[e] && !copy.is_used[e + 1]) {
            ggml_backend_tensor_set_async(copy.to, copy.copy, zeros, (e + 1) * bytes, std::min(bytes, PADDING_BYTES));
        }
    }
}

bool demand(backend_context & ctx, hypura_fetch_t * fetch, const ggml_hypura_tensor * weight,
        const ggml_backend_hypura_copy & copy) {
    if (!copy.slots) {
        return hypura_fetch_begin(fetch, weight->index, nullptr, 0, copy.n_tokens, ctx.error, sizeof(ctx.error))
                == HYPURA_STATUS_OK;
    }
    ctx.wanted.clear();
    for (int32_t e = 0; e < copy.weight->ne[2]; ++e) {
        if (copy.slots[e] >= 0) {
            ctx.wanted.push_back(e);
        }
    }
    return hypura_fetch_begin_some(fetch, weight->index, copy.ids, copy.n_ids, copy.n_tokens, ctx.wanted.data(),
                   ctx.wanted.size(), ctx.error, sizeof(ctx.error))
            == HYPURA_STATUS_OK;
}

} // namespace

void finish_copies(backend_context & ctx) {
    if (ctx.copies_from) {
        ggml_backend_synchronize(ctx.copies_to);
        hypura_fetch_release(ctx.copies_from);
        ctx.copies_from = nullptr;
    }
}

bool copy_weight(const ggml_backend_hypura_copy & copy) {
    backend_context & ctx = context(copy.ours);
    if (!copy.is_cache) {
        finish_copies(ctx); // the scheduler has waited for them
    }
    if (copy.is_lost) {
        finish_rescues(ctx, copy.to);
        clear(copy);
        return false;
    }
    const ggml_hypura_tensor * weight = ggml_hypura_find_tensor(copy.weight);
    hypura_fetch_t * fetch = ctx.fetch_for(weight->model);
    const bool has_begun = fetch && demand(ctx, fetch, weight, copy);
    finish_rescues(ctx, copy.to);
    if (!has_begun) {
        return failed(ctx, copy);
    }
    const size_t bytes = copy.slots ? copy.weight->nb[2] : ggml_nbytes(copy.weight);
    hypura_block blocks[MAX_NODES];
    size_t count = 1;
    while (count > 0) {
        if (!hypura_fetch_is_ready(fetch)) {
            finish_copies(ctx); // what is being copied may be in the way of what is to be read
        }
        if (hypura_fetch_next(fetch, blocks, MAX_NODES, &count, ctx.error, sizeof(ctx.error)) != HYPURA_STATUS_OK) {
            hypura_fetch_end(fetch);
            return failed(ctx, copy);
        }
        for (size_t i = 0; i < count; ++i) {
            const size_t slot = copy.slots ? copy.slots[blocks[i].expert] : 0;
            ggml_backend_tensor_set_async(copy.to, copy.copy, blocks[i].data, slot * bytes, bytes);
            if (copy.is_cache) {
                add_copy(copy.weight, blocks[i].expert);
            }
        }
        if (count > 0) {
            hypura_fetch_keep(fetch);
            ctx.copies_from = fetch;
            ctx.copies_to = copy.to;
        }
    }
    hypura_fetch_end(fetch);
    if (copy.slots && !copy.is_cache) {
        pad(copy);
    }
    return true;
}

void finish_copies_of(ggml_backend_t ours) {
    finish_copies(context(ours));
    finish_rescues(context(ours));
}

void add_copy(const ggml_tensor * weight, int32_t expert) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(weight);
    char error[256];
    if (hypura_copy_add(t->model->handle, t->index, expert, error, sizeof(error)) != HYPURA_STATUS_OK) {
        GGML_LOG_WARN("hypura: %s\n", error);
    }
}

void drop_copy(ggml_backend_t ours, ggml_backend_t from, const ggml_tensor * weight, int32_t expert,
        const ggml_tensor * cache, int32_t slot) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(weight);
    char error[256];
    void * rescue = nullptr;
    if (hypura_copy_remove(t->model->handle, t->index, expert, ours ? &rescue : nullptr, error, sizeof(error))
                    != HYPURA_STATUS_OK
            || !rescue) {
        return;
    }
    ggml_backend_tensor_get_async(from, cache, rescue, slot * weight->nb[2], weight->nb[2]);
    context(ours).rescued.push_back({ t, expert });
}

namespace {

// memory that a GPU's driver reaches directly; the buffers that stand for it are found by their address
struct pinned_memory {
    ggml_backend_buffer_type_t buft;
    std::mutex mutex;
    std::map<void *, ggml_backend_buffer_t> buffers;
};

void * allocate_pinned(size_t size, void * user_data) {
    auto & pinned = *(pinned_memory *) user_data;
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(pinned.buft, size);
    if (!buffer) {
        return nullptr;
    }
    void * memory = ggml_backend_buffer_get_base(buffer);
    // CUDA falls back to memory that is not pinned, and need not be aligned as ours is
    if (ggml_backend_buffer_get_type(buffer) != pinned.buft || (uintptr_t) memory % ggml_hypura_page_size() != 0) {
        ggml_backend_buffer_free(buffer);
        return nullptr;
    }
    std::lock_guard<std::mutex> lock(pinned.mutex);
    pinned.buffers[memory] = buffer;
    return memory;
}

void release_pinned(void * memory, void * user_data) {
    auto & pinned = *(pinned_memory *) user_data;
    std::lock_guard<std::mutex> lock(pinned.mutex);
    ggml_backend_buffer_free(pinned.buffers.at(memory));
    pinned.buffers.erase(memory);
}

} // namespace

void use_device(const ggml_tensor * weight, ggml_backend_dev_t dev) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(weight);
    ggml_backend_buffer_type_t buft = ggml_backend_dev_host_buffer_type(dev);
    if (t->model->has_device.exchange(true)) {
        return;
    }
    if (!buft) {
        GGML_LOG_INFO("hypura: %s has no host memory of its own; what is copied to it takes the slower way\n",
                ggml_backend_dev_name(dev));
        return;
    }
    ggml_hypura_measure_gpu(dev, buft, weight, *t->model);
    // a type of buffer has one owner of such memory, for as long as the process lives
    static std::mutex mutex;
    static std::map<ggml_backend_buffer_type_t, pinned_memory> owners;
    std::lock_guard<std::mutex> lock(mutex);
    pinned_memory & pinned = owners[buft];
    pinned.buft = buft;
    char error[512];
    if (hypura_model_use_memory(t->model->handle, allocate_pinned, release_pinned, &pinned, error, sizeof(error))
            != HYPURA_STATUS_OK) {
        GGML_LOG_WARN("hypura: %s; what is copied to %s takes the slower way\n", error, ggml_backend_dev_name(dev));
    }
}

} // namespace hypura
