// Prints the tensors that llama.cpp wants of a model, one a line: the name and its four extents, ggml's ne[0] first.
//
//   ask_tensors METADATA.gguf
//
// The file has the parameters of a model and no tensors. llama.cpp makes such a model with every tensor that its
// architecture knows, also those that are optional, so a generator need not repeat what stands in llama.cpp's sources.

#include "gguf.h"
#include "llama.h"

#include <cinttypes>
#include <cstdio>
#include <memory>

static void print_tensor(ggml_tensor * tensor, void * user_data) {
    (void) user_data;
    const int64_t * ne = tensor->ne;
    printf("%s\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\n", ggml_get_name(tensor), ne[0], ne[1], ne[2],
            ne[3]);
}

static void print_problems(ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: ask_tensors METADATA.gguf\n");
        return 2;
    }
    llama_log_set(print_problems, nullptr);
    ggml_backend_load_all();

    gguf_init_params gguf_params = { /*.no_alloc =*/true, /*.ctx =*/nullptr };
    std::unique_ptr<gguf_context, decltype(&gguf_free)> metadata(gguf_init_from_file(argv[1], gguf_params), gguf_free);
    if (!metadata) {
        fprintf(stderr, "ask_tensors: cannot read %s\n", argv[1]);
        return 1;
    }
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
            llama_model_init_from_user(metadata.get(), print_tensor, nullptr, llama_model_default_params()),
            llama_model_free);
    return model ? 0 : 1;
}
