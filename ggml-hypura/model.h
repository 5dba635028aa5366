// A streamed model as the adapter sees it, and the one that is being loaded.

#pragma once

#include "ggml-backend.h"

#include "hypura.h"

#include <memory>
#include <string>
#include <vector>

// an opened model; shared by the buffers that stand for its weights and the backends that compute on them
struct hypura_model {
    hypura_model_t * handle = nullptr;

    hypura_model() = default;
    hypura_model(const hypura_model &) = delete;
    ~hypura_model() { hypura_model_free(handle); }
};

// what tensor->extra of a streamed tensor points to
struct hypura_tensor {
    std::shared_ptr<hypura_model> model;
    size_t index;
};

// the model that this thread is loading; empty otherwise
struct hypura_loading {
    std::vector<std::string> paths;
    std::shared_ptr<hypura_model> model;

    // whether the plan takes a tensor, and if so which one it is
    bool takes(const char * name, size_t * index) const;
};

hypura_loading & hypura_current_loading();

// the streamed tensor that t is, or is a view of; nullptr if none
const hypura_tensor * hypura_find_tensor(const ggml_tensor * t);

struct ggml_backend_hypura_loader;
const ggml_backend_hypura_loader * hypura_get_loader();

ggml_backend_buffer_type_t hypura_buffer_type();
bool                       hypura_is_buffer(ggml_backend_buffer_t buffer);
ggml_backend_t             hypura_backend_init(ggml_backend_dev_t dev);
void                       hypura_measure_speeds(ggml_backend_t cpu, int n_threads, const hypura_model & model);
void                       hypura_backend_set_n_threads(ggml_backend_t backend, int n_threads);
void                       hypura_backend_set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data);
