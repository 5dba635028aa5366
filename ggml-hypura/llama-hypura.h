// What libllama calls when it is built with LLAMA_HYPURA. Every function is a no-op when the Hypura backend is not
// registered or takes no part in the model.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

struct ggml_tensor;
struct llama_context_params;
struct llama_model;
struct llama_model_loader;
struct llama_model_tensor_buft_override;

// Brackets the loading of a model.
struct llama_hypura_load {
    llama_hypura_load(const std::string & fname, const std::vector<std::string> & splits);
    ~llama_hypura_load();
};

// Decides what is streamed, and switches mmap off if anything is: a mapping would be read in full. layer_on_cpu tells
// whether a layer's weights would be kept in RAM; the layer after the last is the output.
// Throws std::runtime_error when streaming is needed and impossible.
void llama_hypura_plan(llama_model_loader & ml, int n_layer, const std::function<bool(int)> & layer_on_cpu);

// Whether the tensor is streamed and so must not be read; checks that both sides mean the same bytes of the file.
bool llama_hypura_bind(const ggml_tensor * tensor, uint16_t file, size_t offset);

// Whether any weight of the model is streamed.
bool llama_hypura_streams(const llama_model & model);

// Throws std::runtime_error if any is: they cannot be written.
void llama_hypura_refuse_training(const llama_model & model);

// A context is about to be made: lets models that are streamed already make room for it. Returns the micro-batch to use: larger
// than llama.cpp's default while weights are streamed, since each is read once for all of it.
uint32_t llama_hypura_new_context(const llama_model & model, const llama_context_params & params, uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch);
