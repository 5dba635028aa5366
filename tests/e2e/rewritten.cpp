// Loads a model of which a byte near the end is changed after the header was read and before the weights are, and
// prints the logits of a few tokens, as bits.
//
//     rewritten MODEL

#include "llama.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>

// Changes the lowest bit of the last four bytes: another weight, but not by much.
static bool change_byte(const char * path) {
    const int file = open(path, O_RDWR);
    struct stat status = {};
    uint8_t byte = 0;
    bool done = file >= 0 && fstat(file, &status) == 0 && pread(file, &byte, 1, status.st_size - 4) == 1;
    byte ^= 1;
    done = done && pwrite(file, &byte, 1, status.st_size - 4) == 1;
    if (!done) {
        perror("rewritten");
    }
    close(file);
    return done;
}

static bool change_once(float, void * path) {
    static bool changed = change_byte((const char *) path);
    return changed;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: rewritten MODEL\n");
        return 2;
    }
    ggml_backend_load_all();

    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = false;
    model_params.progress_callback = change_once;
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
