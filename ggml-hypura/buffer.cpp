// The buffer type: address space for weights that are elsewhere.
//
// A streamed tensor has an address, as ggml demands, but no memory: its pages are inaccessible, so a use that escaped
// this backend faults instead of computing on zeros. The same type serves the scheduler's compute buffers, and tensors
// that others put next to the weights (LoRA adapters); those are plain memory.

#include "model.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

namespace {

struct buffer_context {
    void * base;
    size_t size;
    std::shared_ptr<ggml_hypura_model> model; // null unless allocated while a streamed model was being loaded
    std::deque<ggml_hypura_tensor> tensors;   // a deque, since tensor->extra points into it
    std::vector<ggml_backend_buffer_t> kept; // of tensors that stay in memory after all
};

buffer_context * context(ggml_backend_buffer_t buffer) { return (buffer_context *) buffer->context; }

void buffer_free(ggml_backend_buffer_t buffer) {
    for (const ggml_hypura_tensor & tensor : context(buffer)->tensors) {
        tensor.model->n_awaited -= tensor.is_awaited;
    }
    for (ggml_backend_buffer_t kept : context(buffer)->kept) {
        ggml_backend_buffer_free(kept);
    }
    munmap(context(buffer)->base, context(buffer)->size);
    delete context(buffer);
}

void * buffer_get_base(ggml_backend_buffer_t buffer) { return context(buffer)->base; }

// gives a tensor memory of its own
bool make_accessible(const ggml_tensor * tensor) {
    if (mprotect(tensor->data, GGML_PAD(ggml_nbytes(tensor), ggml_hypura_page_size()), PROT_READ | PROT_WRITE) == 0) {
        return true;
    }
    GGML_LOG_ERROR("hypura: the system refuses memory for %s\n", tensor->name);
    return false;
}

ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    buffer_context * ctx = context(buffer);
    const ggml_hypura_loading & loading = ggml_hypura_current_loading();
    size_t index;
    if (!ctx->model || tensor->view_src) {
        return GGML_STATUS_SUCCESS;
    }
    if (!loading.takes(tensor->name, &index)) {
        return make_accessible(tensor) ? GGML_STATUS_SUCCESS : GGML_STATUS_ALLOC_FAILED;
    }
    const bool is_awaited = ctx->model == loading.found;
    const bool is_table = hypura_model_is_table(ctx->model->handle, index);
    ctx->tensors.push_back({ ctx->model, index, is_awaited, is_table, ggml_hypura_expert_count(*ctx->model, index) });
    ctx->model->n_awaited += is_awaited;
    tensor->extra = &ctx->tensors.back();
    return GGML_STATUS_SUCCESS;
}

// takes that memory away again, with what is in it
void make_inaccessible(const ggml_tensor * tensor) {
    const size_t size = GGML_PAD(ggml_nbytes(tensor), ggml_hypura_page_size());
    madvise(tensor->data, size, MADV_DONTNEED);
    mprotect(tensor->data, size, PROT_NONE);
}

// What has memory of its own is from now on in an ordinary buffer, which may be read through tensor->data.
bool move_to_ordinary_buffer(ggml_tensor * tensor) {
    ggml_backend_buffer_t buffer = tensor->buffer;
    ggml_backend_buffer_t kept =
            ggml_backend_cpu_buffer_from_ptr(tensor->data, GGML_PAD(ggml_nbytes(tensor), ggml_hypura_page_size()));
    if (!kept) {
        return false;
    }
    ggml_backend_buffer_set_usage(kept, ggml_backend_buffer_get_usage(buffer));
    context(buffer)->kept.push_back(kept);
    tensor->buffer = kept;
    tensor->extra = nullptr;
    return true;
}

// whether a tensor must not be written to; ggml wants no answer, so computing fails from then on
bool refuses_write(const ggml_tensor * tensor) {
    const ggml_hypura_tensor * streamed = ggml_hypura_find_tensor(tensor);
    if (!streamed) {
        return false;
    }
    const std::string reason =
            std::string(tensor->name) + " is streamed from its file and cannot be written; run with HYPURA=off";
    GGML_LOG_ERROR("hypura: %s\n", reason.c_str());
    streamed->model->fail(reason, false);
    return true;
}

void buffer_memset_tensor(
        ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    GGML_UNUSED(buffer);
    if (refuses_write(tensor)) {
        return;
    }
    memset((char *) tensor->data + offset, value, size);
}

void buffer_set_tensor(
        ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_UNUSED(buffer);
    auto * streamed = const_cast<ggml_hypura_tensor *>(ggml_hypura_find_tensor(tensor));
    if (streamed && streamed->is_awaited && !tensor->view_src) {
        // What is not certain to be in the file stays in memory. Without memory for it, it stays awaited, and nothing
        // is computed with it.
        if (ggml_hypura_receive(*streamed, tensor, data, size) || !make_accessible(tensor)
                || !move_to_ordinary_buffer(tensor)) {
            return;
        }
    }
    if (refuses_write(tensor)) {
        return;
    }
    memcpy((char *) tensor->data + offset, data, size);
}

void buffer_get_tensor(
        ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    GGML_UNUSED(buffer);
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(tensor);
    if (!t) {
        memcpy(data, (const char *) tensor->data + offset, size);
        return;
    }
    char error[512];
    if (hypura_model_read(
                t->model->handle, t->index, tensor->view_offs + offset, size, (uint8_t *) data, error, sizeof(error))
            != HYPURA_STATUS_OK) {
        // no number at all, rather than one that might pass for a weight
        memset(data, 0xff, size);
        GGML_LOG_ERROR("hypura: cannot read %s: %s\n", tensor->name, error);
        t->model->fail(error, true);
    }
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    if (!context(buffer)->model) {
        memset(context(buffer)->base, value, context(buffer)->size);
    }
}

// Interfaces are filled by name, here and elsewhere, since versions of ggml differ in what else they have.
ggml_backend_buffer_i make_buffer_interface() {
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = buffer_free;
    iface.get_base = buffer_get_base;
    iface.init_tensor = buffer_init_tensor;
    iface.memset_tensor = buffer_memset_tensor;
    iface.set_tensor = buffer_set_tensor;
    iface.get_tensor = buffer_get_tensor;
    iface.clear = buffer_clear;
    return iface;
}

const char * type_get_name(ggml_backend_buffer_type_t buft) {
    GGML_UNUSED(buft);
    return "Hypura";
}

ggml_backend_buffer_t type_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    GGML_UNUSED(buft);
    ggml_hypura_forget_if_loaded();
    if (!ggml_hypura_current_loading().refusal.empty()) {
        GGML_LOG_ERROR("hypura: %s\n", ggml_hypura_current_loading().refusal.c_str());
        ggml_hypura_current_loading() = {};
        return nullptr;
    }
    // Inaccessible addresses cost nothing, also where the system counts what might be written to (overcommit 2).
    const int protection = ggml_hypura_current_loading().model ? PROT_NONE : PROT_READ | PROT_WRITE;
    void * base = mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        GGML_LOG_ERROR("%s: cannot reserve %zu bytes of address space\n", __func__, size);
        return nullptr;
    }
    const ggml_hypura_loading & loading = ggml_hypura_current_loading();
    auto * ctx = new buffer_context { base, size, loading.model, {}, {} };
    ggml_backend_buffer_type_t type =
            loading.model && loading.found ? ggml_hypura_protected_type() : ggml_hypura_buffer_type();
    return ggml_backend_buffer_init(type, make_buffer_interface(), ctx, size);
}

size_t type_get_alignment(ggml_backend_buffer_type_t buft) {
    GGML_UNUSED(buft);
    return ggml_hypura_page_size();
}

size_t type_get_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor * tensor) {
    GGML_UNUSED(buft);
    // A product of nothing, as the last layer's are while no token's output is wanted, has a byte: ggml's allocator
    // makes no buffer where all tensors are of nothing, and asks for its address.
    const bool is_product = tensor->op == GGML_OP_MUL_MAT || tensor->op == GGML_OP_MUL_MAT_ID;
    const size_t bytes = std::max<size_t>(ggml_nbytes(tensor), is_product ? 1 : 0);
    // whole pages, so that protecting one tensor leaves its neighbours alone
    return ggml_hypura_current_loading().model ? GGML_PAD(bytes, ggml_hypura_page_size()) : bytes;
}

bool type_is_host(ggml_backend_buffer_type_t buft) { return buft == ggml_hypura_buffer_type(); }

ggml_backend_buffer_type make_type() {
    ggml_backend_buffer_type type = {}; // the device is set by the device
    type.iface.get_name = type_get_name;
    type.iface.alloc_buffer = type_alloc_buffer;
    type.iface.get_alignment = type_get_alignment;
    type.iface.get_alloc_size = type_get_alloc_size;
    type.iface.is_host = type_is_host;
    return type;
}

} // namespace

size_t ggml_hypura_page_size() {
    static const size_t size = sysconf(_SC_PAGESIZE);
    return size;
}

void ggml_hypura_model::fail(const std::string & reason, bool may_pass) {
    std::lock_guard<std::mutex> lock(failure_mutex);
    if (failure.empty() || failure_may_pass) {
        failure = reason;
        failure_may_pass = may_pass;
    }
}

std::string ggml_hypura_model::take_failure() {
    std::lock_guard<std::mutex> lock(failure_mutex);
    const std::string reason = failure;
    if (failure_may_pass) {
        failure.clear();
    }
    return reason;
}

bool ggml_hypura_keep_in_memory(const ggml_tensor * t, char * error, size_t error_size) {
    static std::mutex mutex; // contexts of one model may be made at the same time
    std::lock_guard<std::mutex> lock(mutex);
    ggml_tensor * weight = t->view_src ? t->view_src : const_cast<ggml_tensor *>(t);
    const ggml_hypura_tensor * streamed = ggml_hypura_find_tensor(weight);
    if (!streamed) {
        return true;
    }
    const std::shared_ptr<ggml_hypura_model> model = streamed->model;
    const size_t size = ggml_nbytes(weight);
    GGML_LOG_WARN("hypura: %s is used in another way than multiplied with, so its %zu bytes are kept in memory\n",
            weight->name, size);
    hypura_make_room(size);
    snprintf(error, error_size, "the system refuses memory for %s", weight->name);
    if (!make_accessible(weight)) {
        return false;
    }
    if (hypura_model_read(model->handle, streamed->index, 0, size, (uint8_t *) weight->data, error, error_size)
                    == HYPURA_STATUS_OK
            && move_to_ordinary_buffer(weight)) {
        return true;
    }
    make_inaccessible(weight);
    return false;
}

ggml_backend_buffer_type_t ggml_hypura_buffer_type() {
    static ggml_backend_buffer_type type = make_type();
    return &type;
}

// The same for what must not be read through tensor->data: weights in a host that does not know of this backend. Such a
// host hands their bytes over while it loads, has the scheduler ask for a copy where another backend computes with
// them, and does not take them for memory that it could upload from (llama.cpp's cache of experts), prefetch or lock.
ggml_backend_buffer_type_t ggml_hypura_protected_type() {
    static ggml_backend_buffer_type type = make_type();
    return &type;
}

bool ggml_hypura_is_buffer(ggml_backend_buffer_t buffer) { return buffer && buffer->iface.free_buffer == buffer_free; }
