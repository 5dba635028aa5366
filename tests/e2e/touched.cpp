// Loads a model whose file is touched after its header was read and before its weights are, and prints the logits of a few tokens,
// as bits.
//
//     touched MODEL

#include "llama.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>

static bool touch_once(float progress, void * path) {
    if (progress == 0 && utimensat(AT_FDCWD, (const char *) path, nullptr, 0) != 0) {
        perror("touched");
        return false;
    }
    return true;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: touched MODEL\n");
        return 2;
    }
    ggml_backend_load_all();

    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts             = false;
    model_params.progress_callback           = touch_once;
    model_params.progress_callback_user_data = argv[1];
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) {
        return 1;
    }
    llama_context * ctx = llama_init_from_model(model, llama_context_default_params());
    llama_token tokens[] = { 1, 17, 23, 42 };
    if (!ctx || llama_decode(ctx, llama_batch_get_one(tokens, 4)) != 0) {
        return 1;
    }
    const float * logits = llama_get_logits_ith(ctx, -1);
    for (int i = 0; i < llama_vocab_n_tokens(llama_model_get_vocab(model)); ++i) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof(bits));
        printf("%08" PRIx32 "\n", bits);
    }
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
