// A streamed model as the adapter sees it, and the one that is being loaded.

#pragma once

#include "ggml-backend.h"

#include "hypura.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

// an opened model; shared by the buffers that stand for its weights and the backends that compute on them
struct ggml_hypura_model {
    hypura_model_t * handle = nullptr;

    // tensors that have their addresses, and whose bytes a loader that knows nothing of this is about to hand over
    std::atomic<size_t> n_awaited { 0 };

    // whether it is known which device weights are copied to
    std::atomic<bool> has_device { false };
    std::atomic<bool> has_remote { false };

    ggml_hypura_model() = default;
    ggml_hypura_model(const ggml_hypura_model &) = delete;
    ~ggml_hypura_model() { hypura_model_free(handle); }

    // What fails where ggml wants no answer fails the next computation with this model instead, or all of them if it
    // cannot pass. Nobody gets a result that was computed on what is not there, and the host lives.
    void fail(const std::string & reason, bool may_pass);

    // why nothing may be computed now; empty if nothing hinders
    std::string take_failure();

private:
    std::mutex failure_mutex;
    std::string failure;
    bool failure_may_pass = false;
};

// what tensor->extra of a streamed tensor points to
struct ggml_hypura_tensor {
    std::shared_ptr<ggml_hypura_model> model;
    size_t index;
    bool is_awaited;
    bool is_table; // looked up by the row, and nothing else
    int64_t n_experts; // 0: every token uses all of it
};

// the model that this thread is loading; empty otherwise
struct ggml_hypura_loading {
    std::vector<std::string> paths; // told by a patched llama.cpp
    std::vector<std::pair<std::string, uint64_t>> overrides; // so are these
    std::shared_ptr<ggml_hypura_model> found; // or found out, whether anything of it is streamed or not
    std::shared_ptr<ggml_hypura_model> model; // if anything of it is streamed
    std::string refusal; // why loading must fail, if it must

    // whether the plan takes a tensor, and if so which one it is
    bool takes(const char * name, size_t * index) const;
};

ggml_hypura_loading & ggml_hypura_current_loading();

// Whether a load goes on without us after a failure of ours: what works without us must work with us. It does not when
// the user has to know (a malformed setting, too little memory for what was asked for) or has demanded that the model
// be streamed.
bool ggml_hypura_stands_aside(int32_t status, int32_t setting, const char * reason);

// how many experts a tensor of a model holds; 0 if every token uses all of it
int64_t ggml_hypura_expert_count(const ggml_hypura_model & model, size_t index);

// the streamed tensor that t is, or is a view of; nullptr if none
const ggml_hypura_tensor * ggml_hypura_find_tensor(const ggml_tensor * t);

struct ggml_backend_hypura_loader;
const ggml_backend_hypura_loader * ggml_hypura_get_loader();

// from now on the user's choice of micro-batch holds
void ggml_hypura_keep_micro_batch();

// for a llama.cpp that tells nothing (discover.cpp)
void ggml_hypura_discover(const ggml_tensor * weight);
void ggml_hypura_forget_if_loaded();
bool ggml_hypura_receive(ggml_hypura_tensor & awaited, const ggml_tensor * tensor, const void * data, size_t size);

// why this build does not fit the ggml that has loaded it (host.cpp); empty if it does
std::string ggml_hypura_host_mismatch();

// Makes a streamed tensor one that is in memory, as one that was never streamed is: for uses that are no
// multiplications with it. If its bytes cannot be had it stays what it is, and the error says why.
bool ggml_hypura_keep_in_memory(const ggml_tensor * t, char * error, size_t error_size);

// llama.cpp offers a weight with the operation that its name stands for; a graph may use it otherwise: then the same is
// done for what op uses
bool ggml_hypura_keep_what_is_used_otherwise(const ggml_tensor * op, char * error, size_t error_size);

size_t ggml_hypura_page_size();
ggml_backend_buffer_type_t ggml_hypura_buffer_type();
ggml_backend_buffer_type_t ggml_hypura_protected_type();
bool ggml_hypura_is_buffer(ggml_backend_buffer_t buffer);
ggml_backend_t ggml_hypura_backend_init(ggml_backend_dev_t dev);
void ggml_hypura_measure_gpu(ggml_backend_dev_t dev, ggml_backend_buffer_type_t host_buft, const ggml_tensor * weight,
        const ggml_hypura_model & model);
void ggml_hypura_measure_remote(ggml_backend_dev_t dev, ggml_type type, ggml_hypura_model & model);
void ggml_hypura_measure_speeds(ggml_backend_t cpu, int n_threads, const ggml_hypura_model & model);
void ggml_hypura_backend_set_n_threads(ggml_backend_t backend, int n_threads);
void ggml_hypura_backend_set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data);
