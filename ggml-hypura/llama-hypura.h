// What libllama calls when it is built with LLAMA_HYPURA. Every function is a no-op when the Hypura backend is not
// registered or takes no part in the model.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct ggml_backend;
struct ggml_backend_buffer_type;
struct ggml_backend_device;
struct ggml_backend_hypura_loader;
struct ggml_cgraph;
struct ggml_tensor;
struct llama_batch;
struct llama_context_params;
struct llama_model;
struct llama_model_loader;
struct llama_model_tensor_buft_override;
class llama_moe_cache;

// Brackets the loading of a model.
struct llama_hypura_load {
    llama_hypura_load(const std::string & fname, const std::vector<std::string> & splits);
    ~llama_hypura_load();
};

// Decides what is streamed, and switches mmap off if anything is: a mapping would be read in full. layer_device tells
// where a layer would be kept; the layer after the last is the output. Layers after the trunk draft tokens.
// Throws std::runtime_error when streaming is needed and impossible.
void llama_hypura_plan(llama_model_loader & ml, int n_layer, int n_layer_trunk,
        const std::function<ggml_backend_device *(int)> & layer_device);

// Whether the tensor is streamed and so must not be read; checks that both sides mean the same bytes of the file.
bool llama_hypura_bind(const ggml_tensor * tensor, uint16_t file, size_t offset);

// Whether any weight of the model is streamed.
bool llama_hypura_streams(const llama_model & model);

// Throws std::runtime_error if any is: they cannot be written.
void llama_hypura_refuse_training(const llama_model & model);

// A context is about to be made: lets models that are streamed already make room for it. Returns the micro-batch to
// use: larger than llama.cpp's default while weights are streamed, since each is read once for all of it.
uint32_t llama_hypura_new_context(const llama_model & model, const llama_context_params & params, uint32_t n_ctx,
        uint32_t n_batch, uint32_t n_ubatch);

// A graph is about to be computed, and its inputs are there: what is certain to be wanted of streamed weights is read
// at once. `backends` are all of the context.
void llama_hypura_expect(const std::vector<ggml_backend *> & backends, ggml_cgraph * graph);

// A batch is about to be computed, in several graphs maybe: what all of them look up by the token is read at once.
void llama_hypura_expect_batch(
        const llama_model & model, const std::vector<ggml_backend *> & backends, const llama_batch & batch);

// The rest is for GPUs, which compute with copies of streamed weights. `backends` are all of the context.

// Copies a streamed weight to another backend, as a whole. False if it is not streamed.
bool llama_hypura_copy(const std::vector<ggml_backend *> & backends, ggml_backend * backend, const ggml_tensor * src,
        ggml_tensor * dst, ggml_cgraph * graph);

// Copies the experts that are used to where they are in the weight. False if it is not streamed.
bool llama_hypura_copy_experts(const std::vector<ggml_backend *> & backends, llama_moe_cache * cache,
        ggml_backend * backend, const ggml_tensor * src, ggml_tensor * dst, const ggml_tensor * ids,
        const std::vector<int32_t> & ids_data, const std::vector<bool> & used);

// A graph has been computed. Whether copying a weight has failed since the last call by this thread: then its result is
// worth nothing.
bool llama_hypura_copy_failed(const std::vector<ggml_backend *> & backends);

// A context's cache of experts, in device memory that nobody else wants: it gives way, and comes back.
struct llama_hypura_vram;

// For a model whose experts are streamed; null if it can have no cache. `cache` is filled by turns, and must outlive
// what is returned.
std::shared_ptr<llama_hypura_vram> llama_hypura_new_vram(const llama_model & model,
        const std::vector<ggml_backend *> & backends, const std::vector<ggml_backend_buffer_type *> & bufts,
        std::unique_ptr<llama_moe_cache> & cache);

// A context computes. At the beginning its cache is fitted to the memory that is free; if it is another one since, or
// none (`is_replaced`), graphs that were built are of no use any more. Until the end no other thread takes it away.
class llama_hypura_turn {
public:
    llama_hypura_turn(llama_hypura_vram * vram, bool & is_replaced);
    ~llama_hypura_turn();
    llama_hypura_turn(const llama_hypura_turn &) = delete;
    llama_hypura_turn & operator=(const llama_hypura_turn &) = delete;

private:
    llama_hypura_vram * vram;
};

// Within a turn: the context gets no memory for what it computes. Whether its cache has given way, so that another try
// is worth it; what has been built with the cache is of no use then.
bool llama_hypura_give_way(llama_hypura_vram * vram);

// While it is held, a thread that computes nothing may look at the cache: none is made, and none goes.
std::unique_lock<std::mutex> llama_hypura_lock_cache(llama_hypura_vram * vram);

// Between the parts of this file.
const ggml_backend_hypura_loader * llama_hypura_get_loader();
ggml_backend * llama_hypura_find_backend(const std::vector<ggml_backend *> & backends);
const ggml_tensor * llama_hypura_find_streamed(const llama_model & model);

// How many tokens a graph multiplies with a weight, or with a view of it.
size_t llama_hypura_count_tokens(const ggml_tensor * weight, ggml_cgraph * graph);

// Copies experts of a streamed weight to their slots (-1: not wanted) of a cache. False when a read has failed, of this
// or of a copy before it for the same graph: then what is in them must not be used again.
bool llama_hypura_fill_bank(ggml_backend * ours, ggml_backend * backend, const ggml_tensor * weight, ggml_tensor * bank,
        const std::vector<int32_t> & ids, size_t n_tokens, const std::vector<int32_t> & slots);

// Whether a device is another machine's, reached by llama.cpp's RPC backend.
bool llama_hypura_is_remote(ggml_backend_device * dev);
