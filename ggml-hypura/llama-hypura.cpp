#include "llama-hypura.h"

#include "ggml-hypura.h"

#include "llama-model-loader.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdio>
#include <regex>
#include <stdexcept>

const ggml_backend_hypura_loader * llama_hypura_get_loader() {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("Hypura");
    auto * loader = reg
            ? (const ggml_backend_hypura_loader *) ggml_backend_reg_get_proc_address(reg, GGML_BACKEND_HYPURA_LOADER)
            : nullptr;
    return loader && loader->version == GGML_BACKEND_HYPURA_LOADER_VERSION ? loader : nullptr;
}

llama_hypura_load::llama_hypura_load(const std::string & fname, const std::vector<std::string> & splits) {
    const auto * loader = llama_hypura_get_loader();
    if (!loader || fname.empty()) {
        return;
    }
    std::vector<const char *> paths;
    for (const auto & split : splits) {
        paths.push_back(split.c_str());
    }
    if (paths.empty()) {
        paths.push_back(fname.c_str());
    }
    loader->begin(paths.data(), paths.size());
}

llama_hypura_load::~llama_hypura_load() {
    if (const auto * loader = llama_hypura_get_loader()) {
        loader->end();
    }
}

namespace {

struct placement {
    int n_layer;
    int n_layer_loaded; // the layers after these draft tokens, and are not loaded
    const std::function<ggml_backend_device *(int)> & layer_device;
    const llama_model_tensor_buft_override * overrides;
};

ggml_backend_hypura_place place_on(ggml_backend_dev_t dev) {
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return GGML_BACKEND_HYPURA_PLACE_RAM;
    }
    return llama_hypura_is_remote(dev) ? GGML_BACKEND_HYPURA_PLACE_REMOTE : GGML_BACKEND_HYPURA_PLACE_DEVICE;
}

ggml_backend_hypura_place place_in(ggml_backend_buffer_type_t buft) {
    if (buft == ggml_backend_cpu_buffer_type()) {
        return GGML_BACKEND_HYPURA_PLACE_RAM;
    }
    // others of the CPU hold weights in a form of their own
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    return dev && llama_hypura_is_remote(dev) ? GGML_BACKEND_HYPURA_PLACE_REMOTE : GGML_BACKEND_HYPURA_PLACE_DEVICE;
}

ggml_backend_hypura_place place(const char * name, void * user_data) {
    const auto & where = *(const placement *) user_data;
    int layer;
    const bool is_in_layer = sscanf(name, "blk.%d.", &layer) == 1;
    if (is_in_layer && layer >= where.n_layer_loaded) {
        return GGML_BACKEND_HYPURA_PLACE_SPARE;
    }
    for (const auto * o = where.overrides; o && o->pattern; ++o) {
        if (std::regex_search(name, std::regex(o->pattern))) {
            return place_in(o->buft);
        }
    }
    if (is_in_layer) {
        return layer < where.n_layer ? place_on(where.layer_device(layer)) : GGML_BACKEND_HYPURA_PLACE_DEVICE;
    }
    // the input is always kept in RAM
    const bool is_output = std::string(name).rfind("output", 0) == 0;
    return is_output ? place_on(where.layer_device(where.n_layer)) : GGML_BACKEND_HYPURA_PLACE_RAM;
}

} // namespace

// Tables are offered to us like any weight, unless llama.cpp (where it can) maps them to fault in one page at a time.
template <typename L> auto offer_tables(L & ml, int) -> decltype((void) ml.lazy.mode) {
    ml.lazy.mode = decltype(ml.lazy.mode)(0); // off
}
template <typename L> void offer_tables(L &, long) {}

// Before it could be asked for, llama.cpp never loaded the layers that predict more tokens.
template <typename L> auto loads_mtp(const L & ml, int) -> decltype(bool(ml.load_mtp)) { return ml.load_mtp; }
template <typename L> bool loads_mtp(const L &, long) { return false; }

void llama_hypura_plan(llama_model_loader & ml, int n_layer, int n_layer_trunk,
        const std::function<ggml_backend_device *(int)> & layer_device) {
    const auto * loader = llama_hypura_get_loader();
    if (!loader) {
        return;
    }
    for (const auto & [key, value] : ml.kv_overrides) {
        if (value.tag == LLAMA_KV_OVERRIDE_TYPE_INT && value.val_i64 >= 0) {
            loader->override_key(key.c_str(), value.val_i64);
        }
    }
    placement where = { n_layer, loads_mtp(ml, 0) ? n_layer : n_layer_trunk, layer_device, ml.tensor_buft_overrides };
    bool streamed = false;
    char error[1024];
    if (!loader->plan(place, &where, &streamed, error, sizeof(error))) {
        throw std::runtime_error(std::string("hypura: ") + error);
    }
    if (streamed) {
        ml.use_mmap = false;
        offer_tables(ml, 0);
    }
}

bool llama_hypura_bind(const ggml_tensor * tensor, uint16_t file, size_t offset) {
    const auto * loader = llama_hypura_get_loader();
    if (!loader || !loader->is_streamed(tensor)) {
        return false;
    }
    char error[1024];
    if (!loader->bind(tensor, file, offset, error, sizeof(error))) {
        throw std::runtime_error(std::string("hypura: ") + error);
    }
    return true;
}

const ggml_tensor * llama_hypura_find_streamed(const llama_model & model) {
    const auto * loader = llama_hypura_get_loader();
    for (const auto & [_, tensor] : model.tensors_by_name) {
        if (loader && loader->is_streamed(tensor)) {
            return tensor;
        }
    }
    return nullptr;
}

bool llama_hypura_streams(const llama_model & model) { return llama_hypura_find_streamed(model) != nullptr; }

void llama_hypura_refuse_training(const llama_model & model) {
    if (const ggml_tensor * tensor = llama_hypura_find_streamed(model)) {
        throw std::runtime_error(std::string("hypura: ") + tensor->name
                + " is streamed from its file and cannot be trained; run with HYPURA=off");
    }
}

ggml_backend_t llama_hypura_find_backend(const std::vector<ggml_backend_t> & backends) {
    if (!llama_hypura_get_loader()) {
        return nullptr;
    }
    const ggml_backend_reg_t reg = ggml_backend_reg_by_name("Hypura");
    const auto is_ours = [&](ggml_backend_t backend) {
        return ggml_backend_dev_backend_reg(ggml_backend_get_device(backend)) == reg;
    };
    const auto found = std::find_if(backends.begin(), backends.end(), is_ours);
    return found == backends.end() ? nullptr : *found;
}

bool llama_hypura_is_remote(ggml_backend_dev_t dev) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(dev);
    return reg && std::string(ggml_backend_reg_name(reg)) == "RPC";
}

void llama_hypura_expect(const std::vector<ggml_backend_t> & backends, ggml_cgraph * graph) {
    if (ggml_backend_t ours = llama_hypura_find_backend(backends)) {
        llama_hypura_get_loader()->expect(ours, graph);
    }
}

void llama_hypura_expect_batch(
        const llama_model & model, const std::vector<ggml_backend_t> & backends, const llama_batch & batch) {
    ggml_backend_t ours = batch.token ? llama_hypura_find_backend(backends) : nullptr;
    if (!ours) {
        return;
    }
    const auto * loader = llama_hypura_get_loader();
    for (const char * name : { "per_layer_token_embd.weight", "token_embd.weight" }) {
        const ggml_tensor * table = model.get_tensor(name);
        // a table with other rows is not looked up by the token alone
        if (table && loader->is_streamed(table) && table->ne[1] == (int64_t) model.vocab.n_tokens()) {
            loader->expect_rows(ours, table, batch.token, batch.n_tokens);
        }
    }
}

// KV cache and intermediate results in RAM, roughly: logits and some rows of the residual stream for each token of a
// micro-batch.
static size_t context_bytes(
        const llama_model & model, const llama_context_params & params, uint32_t n_ctx, uint32_t n_ubatch) {
    const auto & hparams = model.hparams;
    size_t bytes = size_t(n_ubatch) * (model.vocab.n_tokens() + 16 * hparams.n_embd) * sizeof(float);
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        const bool on_gpu =
                params.offload_kqv && ggml_backend_dev_type(model.dev_layer(il)) == GGML_BACKEND_DEVICE_TYPE_GPU;
        if (!on_gpu) {
            bytes += n_ctx
                    * (ggml_row_size(params.type_k, hparams.n_embd_k_gqa(il))
                            + ggml_row_size(params.type_v, hparams.n_embd_v_gqa(il)));
        }
    }
    return bytes;
}

// Of the matrices that a device multiplies with. The RPC backend takes every operation, whether its server can compute
// it or not: what is asked of it must be something that llama.cpp asks, too.
static const ggml_tensor * largest_matrix_on(const llama_model & model, ggml_backend_dev_t dev) {
    const ggml_tensor * largest = nullptr;
    for (const auto & [name, t] : model.tensors_by_name) {
        const bool is_matrix = name.rfind("blk.", 0) == 0 && t->ne[0] > 1 && t->ne[1] > 1 && t->ne[2] == 1;
        const bool is_there = t->buffer && ggml_backend_buft_get_device(ggml_backend_buffer_get_type(t->buffer)) == dev;
        if (is_matrix && is_there && (!largest || ggml_nbytes(t) > ggml_nbytes(largest))) {
            largest = t;
        }
    }
    return largest;
}

uint32_t llama_hypura_new_context(const llama_model & model, const llama_context_params & params, uint32_t n_ctx,
        uint32_t n_batch, uint32_t n_ubatch) {
    const auto * loader = llama_hypura_get_loader();
    if (!loader) {
        return n_ubatch;
    }
    const ggml_tensor * streamed = llama_hypura_find_streamed(model);
    // any other value than llama.cpp's own is a choice, too
    if (streamed && n_ubatch == llama_context_default_params().n_ubatch) {
        n_ubatch = loader->micro_batch(streamed, n_batch, n_ubatch);
    }
    const auto is_remote = [](const auto & device) { return llama_hypura_is_remote(device.dev); };
    const auto local = std::find_if_not(model.devices.begin(), model.devices.end(), is_remote);
    const auto remote = std::find_if(model.devices.begin(), model.devices.end(), is_remote);
    if (streamed && local != model.devices.end()) {
        loader->use_device(streamed, local->dev);
    }
    if (const ggml_tensor * matrix =
                    streamed && remote != model.devices.end() ? largest_matrix_on(model, remote->dev) : nullptr) {
        loader->use_remote(streamed, remote->dev, matrix);
    }
    loader->make_room(context_bytes(model, params, n_ctx, n_ubatch));
    return n_ubatch;
}
