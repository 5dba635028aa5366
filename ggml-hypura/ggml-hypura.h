// A ggml backend that computes on weights streamed by libhypura.
//
// The device is of type ACCEL: llama.cpp offers it every weight that would be kept in RAM, and schedules the nodes that
// use the weights it takes. How a host tells it about a model is ggml_backend_hypura_loader.

#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

GGML_BACKEND_API ggml_backend_reg_t ggml_backend_hypura_reg(void);

// The name by which ggml_backend_reg_get_proc_address gives out a const struct ggml_backend_hypura_loader *.
#define GGML_BACKEND_HYPURA_LOADER "ggml_backend_hypura_loader"

#define GGML_BACKEND_HYPURA_LOADER_VERSION 3

// Loading a model, in the order of the calls; all on one thread. Those that can fail return false and write the reason.
struct ggml_backend_hypura_loader {
    int version;

    // a model with these files is about to be loaded
    void (*begin)(const char * const * paths, size_t n_paths);

    // decides what is streamed: on_host tells which tensors would be kept in RAM, *streamed whether any of them is taken
    bool (*plan)(bool (*on_host)(const char * name, void * user_data), void * user_data, bool * streamed, char * error, size_t error_size);

    // instead of reading a tensor that is_streamed: checks that both sides mean the same bytes
    bool (*bind)(const struct ggml_tensor * tensor, size_t file, size_t offset, char * error, size_t error_size);

    // loading is over, successful or not
    void (*end)(void);

    // whether a tensor's weights are streamed; valid for as long as its model
    bool (*is_streamed)(const struct ggml_tensor * tensor);

    // how many tokens to compute at once with a model, given one of its streamed tensors: n_ubatch, or more of n_batch
    size_t (*micro_batch)(const struct ggml_tensor * tensor, size_t n_batch, size_t n_ubatch);

    // so much memory is about to be taken: models that are streamed give up what is needed for it
    void (*make_room)(size_t size);
};

#ifdef __cplusplus
}
#endif
