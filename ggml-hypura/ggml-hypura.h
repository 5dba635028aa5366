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

#define GGML_BACKEND_HYPURA_LOADER_VERSION 6

// A streamed weight that is to be copied to another backend.
struct ggml_backend_hypura_copy {
    ggml_backend_t ours; // the context's Hypura backend
    ggml_backend_t to;

    const struct ggml_tensor * weight;
    struct ggml_tensor * copy;

    // of a weight with experts: the router's choices, one token after the other
    const int32_t * ids;
    size_t n_ids;
    size_t n_tokens;

    // by expert: its position in the copy, -1 if it is not wanted; NULL for a weight without experts
    const int32_t * slots;

    // by expert: whether it is used, be it wanted or not; NULL where the copy is a cache
    const char * is_used;

    // the copy is kept: libhypura need not hold what is in it
    bool is_cache;

    // the graph has failed already: zeros do
    bool is_lost;
};

// The name by which it gives out a void (*)(void) to call when the user has chosen the size of micro-batches: it stays
// as it is then.
#define GGML_BACKEND_HYPURA_KEEP_MICRO_BATCH "ggml_backend_hypura_keep_micro_batch"

// Where a model's tensor would be kept that is not streamed; the numbers are those of hypura_place.
enum ggml_backend_hypura_place {
    GGML_BACKEND_HYPURA_PLACE_DEVICE = 0,
    GGML_BACKEND_HYPURA_PLACE_RAM = 1,
    GGML_BACKEND_HYPURA_PLACE_SPARE = 2, // probably nowhere: it is in the file and not loaded
    GGML_BACKEND_HYPURA_PLACE_REMOTE = 3, // on a device of another machine
};

// Loading a model, in the order of the calls; all on one thread. Those that can fail return false and write the reason.
struct ggml_backend_hypura_loader {
    int version;

    // a model with these files is about to be loaded
    void (*begin)(const char * const * paths, size_t n_paths);

    // the model goes by another number than its file has under a key
    void (*override_key)(const char * key, uint64_t value);

    // decides what is streamed: place tells where each tensor would be kept, *streamed whether any of them is taken
    bool (*plan)(enum ggml_backend_hypura_place (*place)(const char * name, void * user_data), void * user_data,
            bool * streamed, char * error, size_t error_size);

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

    // a graph is about to be computed, and its inputs are there: what is certain to be wanted of streamed weights is
    // read at once
    void (*expect)(ggml_backend_t ours, struct ggml_cgraph * graph);

    // the same of a table that graphs to come look up, where it is known by other means
    void (*expect_rows)(ggml_backend_t ours, const struct ggml_tensor * table, const int32_t * ids, size_t n_ids);

    // the weights of the model of this tensor are going to be copied to a device
    void (*use_device)(const struct ggml_tensor * tensor, ggml_backend_dev_t dev);

    // a device of another machine has a part of the model of this tensor, such as that matrix
    void (*use_remote)(const struct ggml_tensor * tensor, ggml_backend_dev_t dev, const struct ggml_tensor * matrix);

    // copies; false when a weight cannot be read: then the copy is zeros and the reason is logged
    bool (*copy)(const struct ggml_backend_hypura_copy * copy);

    // waits for what is being copied, and lets go of where it came from; to be called when a graph has been computed,
    // and before the copies of one layer into a cache. Also completes what drop_copy() has begun, once the device has
    // been waited for
    void (*finish_copies)(ggml_backend_t ours);

    // a cache has an expert now that it did not get by copy()
    void (*add_copy)(const struct ggml_tensor * weight, int32_t expert);

    // how much an expert deserves to be in a cache, compared with others
    double (*worth)(const struct ggml_tensor * weight, int32_t expert);

    // an expert's slot of a cache is about to be used for another. With `ours` its bytes may be copied into RAM first,
    // which the next copy() to that backend or finish_copies() completes
    void (*drop_copy)(ggml_backend_t ours, ggml_backend_t from, const struct ggml_tensor * weight, int32_t expert,
            const struct ggml_tensor * cache, int32_t slot);

    // how much of a device's memory a cache of the experts of this tensor's model may take
    size_t (*vram_budget)(const struct ggml_tensor * tensor, size_t free, size_t total);

    // the same from now on, while it holds some of it: `held` if nothing need change
    size_t (*vram_budget_now)(const struct ggml_tensor * tensor, size_t held, size_t free, size_t total);

    // how much one has taken, or, if negative, given back
    void (*note_vram)(const struct ggml_tensor * tensor, int64_t bytes);
};

#ifdef __cplusplus
}
#endif
