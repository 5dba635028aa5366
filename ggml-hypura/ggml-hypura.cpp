// Registration and the device: what this backend answers for.

#include "ggml-hypura.h"

#include "model.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <cstring>

namespace {

// A multiplication with a streamed weight: of experts by ids, with all of the weight's experts and not a part of them;
// of others without.
bool is_streamed_mul_mat(const ggml_tensor * op) {
    if (op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID) {
        return false;
    }
    const ggml_hypura_tensor * weight = ggml_hypura_find_tensor(op->src[0]);
    if (!weight) {
        return false;
    }
    const ggml_tensor * whole = op->src[0]->view_src ? op->src[0]->view_src : op->src[0];
    const bool has_all =
            op->src[0]->ne[2] == weight->n_experts && op->src[0]->nb[2] == whole->nb[2] && op->src[0]->view_offs == 0;
    return op->op == GGML_OP_MUL_MAT ? weight->n_experts == 0 : has_all;
}

// what is done with a streamed table: rows of it, or a copy of a part
bool is_streamed_lookup(const ggml_tensor * op) {
    const bool may_be =
            op->op == GGML_OP_GET_ROWS || op->op == GGML_OP_CPY || op->op == GGML_OP_CONT || op->op == GGML_OP_DUP;
    const ggml_hypura_tensor * table = may_be ? ggml_hypura_find_tensor(op->src[0]) : nullptr;
    return table && table->is_table;
}

bool is_view(const ggml_tensor * op) {
    return op->op == GGML_OP_VIEW || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_PERMUTE
            || op->op == GGML_OP_TRANSPOSE;
}

// a result of ours, or a view of one
bool is_ours(const ggml_tensor * t) {
    while (is_view(t)) {
        t = t->src[0];
    }
    return is_streamed_mul_mat(t);
}

// llama.cpp asks with a placeholder buffer before it creates a weight
bool is_offered_weight(const ggml_tensor * op) {
    const ggml_tensor * weight = op->src[0];
    const bool expert = op->op == GGML_OP_MUL_MAT_ID;
    const bool lookup = op->op == GGML_OP_GET_ROWS;
    if (!(expert || lookup || op->op == GGML_OP_MUL_MAT) || !weight->buffer
            || weight->buffer->buft != ggml_hypura_buffer_type() || weight->buffer->size != 0) {
        return false;
    }
    ggml_hypura_discover(weight);
    const ggml_hypura_loading & loading = ggml_hypura_current_loading();
    size_t index;
    // a model that must not be loaded is taken, too: allocating memory for it fails
    return !loading.refusal.empty()
            || (loading.takes(weight->name, &index) && hypura_model_is_table(loading.model->handle, index) == lookup
                    && expert == (ggml_hypura_expert_count(*loading.model, index) > 0));
}

const char * device_get_name(ggml_backend_dev_t dev) {
    GGML_UNUSED(dev);
    return "Hypura";
}

const char * device_get_description(ggml_backend_dev_t dev) {
    GGML_UNUSED(dev);
    return "weights streamed from the drive";
}

void device_get_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    GGML_UNUSED(dev);
    *free = 0;
    *total = 0;
}

enum ggml_backend_dev_type device_get_type(ggml_backend_dev_t dev) {
    GGML_UNUSED(dev);
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void device_get_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    props->name = device_get_name(dev);
    props->description = device_get_description(dev);
    props->type = device_get_type(dev);
    device_get_memory(dev, &props->memory_free, &props->memory_total);
    props->caps = {};
}

ggml_backend_t device_init_backend(ggml_backend_dev_t dev, const char * params) {
    GGML_UNUSED(params);
    return ggml_hypura_backend_init(dev);
}

ggml_backend_buffer_type_t device_get_buffer_type(ggml_backend_dev_t dev) {
    GGML_UNUSED(dev);
    return ggml_hypura_buffer_type();
}

// No other backend can have a weight whose memory is no host's, so the scheduler asks us for the weight itself and for
// views of it.
bool is_protected(const ggml_tensor * t) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return buffer && buffer->buft == ggml_hypura_protected_type();
}

// Anything beyond these would pull neighbouring nodes over from their own backend or cut more splits.
bool device_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    GGML_UNUSED(dev);
    if (op->op == GGML_OP_NONE) {
        return is_protected(op);
    }
    if (is_view(op)) {
        return is_ours(op) || is_protected(op);
    }
    if (op->op == GGML_OP_GLU) {
        return is_ours(op->src[0]) && (!op->src[1] || is_ours(op->src[1]));
    }
    char error[512];
    if (!ggml_hypura_keep_what_is_used_otherwise(op, error, sizeof(error))) {
        // no other backend may have it, whose pages would be inaccessible: computing it here tries again, and fails in
        // words
        GGML_LOG_ERROR("hypura: %s\n", error);
        return true;
    }
    return is_streamed_mul_mat(op) || is_streamed_lookup(op) || is_offered_weight(op);
}

bool device_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    GGML_UNUSED(dev);
    return buft == ggml_hypura_protected_type() || ggml_backend_buft_is_host(buft);
}

ggml_backend_device_i make_device_interface() {
    ggml_backend_device_i iface = {};
    iface.get_name = device_get_name;
    iface.get_description = device_get_description;
    iface.get_memory = device_get_memory;
    iface.get_type = device_get_type;
    iface.get_props = device_get_props;
    iface.init_backend = device_init_backend;
    iface.get_buffer_type = device_get_buffer_type;
    iface.supports_op = device_supports_op;
    iface.supports_buft = device_supports_buft;
    return iface;
}

const char * reg_get_name(ggml_backend_reg_t reg) {
    GGML_UNUSED(reg);
    return "Hypura";
}

size_t reg_get_device_count(ggml_backend_reg_t reg) {
    GGML_UNUSED(reg);
    return 1;
}

ggml_backend_dev_t reg_get_device(ggml_backend_reg_t reg, size_t index) {
    GGML_ASSERT(index == 0);
    static ggml_backend_device device = {
        /* .iface   = */ make_device_interface(),
        /* .reg     = */ reg,
        /* .context = */ nullptr,
    };
    // once: models may be loaded from several threads
    static const bool has_types = [] {
        ggml_hypura_buffer_type()->device = &device;
        ggml_hypura_protected_type()->device = &device;
        return true;
    }();
    GGML_UNUSED(has_types);
    return &device;
}

void * reg_get_proc_address(ggml_backend_reg_t reg, const char * name) {
    GGML_UNUSED(reg);
    if (strcmp(name, GGML_BACKEND_HYPURA_LOADER) == 0) {
        return const_cast<ggml_backend_hypura_loader *>(ggml_hypura_get_loader());
    }
    if (strcmp(name, GGML_BACKEND_HYPURA_KEEP_MICRO_BATCH) == 0) {
        return (void *) ggml_hypura_keep_micro_batch;
    }
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return (void *) ggml_hypura_backend_set_n_threads;
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return (void *) ggml_hypura_backend_set_abort_callback;
    }
    return nullptr;
}

void forward_log(int32_t level, const char * message, void * user_data) {
    GGML_UNUSED(user_data);
    switch (level) {
        case HYPURA_LOG_LEVEL_ERROR: GGML_LOG_ERROR("hypura: %s\n", message); break;
        case HYPURA_LOG_LEVEL_WARN: GGML_LOG_WARN("hypura: %s\n", message); break;
        case HYPURA_LOG_LEVEL_INFO: GGML_LOG_INFO("hypura: %s\n", message); break;
        default: GGML_LOG_DEBUG("hypura: %s\n", message); break;
    }
}

// libhypura may be older than this ggml and its types
void define_types() {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const ggml_type_traits * traits = ggml_get_type_traits((ggml_type) type);
        char error[256];
        if (traits->blck_size > 0 && traits->type_size > 0
                && hypura_type_define(
                           type, traits->type_name, traits->blck_size, traits->type_size, error, sizeof(error))
                        != HYPURA_STATUS_OK) {
            GGML_LOG_WARN("hypura: %s\n", error);
        }
    }
}

} // namespace

bool ggml_hypura_keep_what_is_used_otherwise(const ggml_tensor * op, char * error, size_t error_size) {
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        if (op->src[i] && ggml_hypura_find_tensor(op->src[i])
                && !(i == 0 && (is_streamed_mul_mat(op) || is_streamed_lookup(op)))
                && !ggml_hypura_keep_in_memory(op->src[i], error, error_size)) {
            return false;
        }
    }
    return true;
}

ggml_backend_reg_t ggml_backend_hypura_reg(void) {
    static ggml_backend_reg reg = {
        /* .api_version = */ GGML_BACKEND_API_VERSION,
        /* .iface       = */
        {
                /* .get_name         = */ reg_get_name,
                /* .get_device_count = */ reg_get_device_count,
                /* .get_device       = */ reg_get_device,
                /* .get_proc_address = */ reg_get_proc_address,
        },
        /* .context     = */ nullptr,
    };
    static const bool ready = [] {
        if (hypura_abi_version() != HYPURA_ABI_VERSION) {
            GGML_LOG_ERROR(
                    "hypura: built for version %d of libhypura's interface, but version %u is loaded; not used\n",
                    HYPURA_ABI_VERSION, hypura_abi_version());
            return false;
        }
        const std::string mismatch = ggml_hypura_host_mismatch();
        if (!mismatch.empty()) {
            GGML_LOG_ERROR("hypura: %s; not used: build it with the headers of this llama.cpp\n", mismatch.c_str());
            return false;
        }
#ifdef GGML_BACKEND_DL
        if (ggml_backend_reg_by_name("Hypura")) {
            GGML_LOG_WARN("hypura: there is a Hypura backend already; this one is not used\n");
            return false;
        }
#endif
        hypura_log_set(forward_log, nullptr);
        define_types();
        return true;
    }();
    return ready ? &reg : nullptr;
}

#ifndef HYPURA_FINDS_HOST_FUNCTIONS
GGML_BACKEND_DL_IMPL(ggml_backend_hypura_reg)
#endif
