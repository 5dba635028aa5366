// Computes with one model and then with a second one beside it, which finds that the first has taken what there was.
//
//     two_models MODEL MODEL
//
// A line on stdout for every turn: the turn's model and a checksum of its logits.

#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <vector>

struct speaker {
    llama_model * model = nullptr;
    llama_context * ctx = nullptr;

    bool load(const char * path) {
        llama_model_params model_params = llama_model_default_params();
        model_params.use_extra_bufts = false;
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = params.n_ubatch = 64;
        params.n_threads = params.n_threads_batch = 2;
        model = llama_model_load_from_file(path, model_params);
        ctx = model ? llama_init_from_model(model, params) : nullptr;
        return ctx != nullptr;
    }

    // tokens unlike each other, so that many experts are used; false if they cannot be computed
    bool take_turn(int number) {
        llama_memory_clear(llama_get_memory(ctx), true);
        std::vector<llama_token> prompt;
        for (int i = 0; i < 8; ++i) {
            prompt.push_back(1000 + i * 37 + number * 101);
        }
        if (llama_decode(ctx, llama_batch_get_one(prompt.data(), prompt.size())) != 0) {
            return false;
        }
        const auto * bytes = (const unsigned char *) llama_get_logits_ith(ctx, -1);
        const size_t size = llama_vocab_n_tokens(llama_model_get_vocab(model)) * sizeof(float);
        uint64_t sum = 0xcbf29ce484222325;
        for (size_t i = 0; i < size; ++i) {
            sum = (sum ^ bytes[i]) * 0x100000001b3;
        }
        printf("%d: %016llx\n", number % 2, (unsigned long long) sum);
        return true;
    }
};

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: two_models MODEL MODEL\n");
        return 2;
    }
    ggml_backend_load_all();
    speaker speakers[2];
    for (int turn = 0; turn < 4; ++turn) {
        speaker & speaker = speakers[turn % 2];
        if (!speaker.ctx && !speaker.load(argv[1 + turn % 2])) {
            fprintf(stderr, "two_models: cannot load model %d\n", turn % 2);
            return 1;
        }
        if (!speaker.take_turn(turn)) {
            fprintf(stderr, "two_models: cannot compute turn %d\n", turn);
            return 1;
        }
    }
    for (speaker & speaker : speakers) {
        llama_free(speaker.ctx);
        llama_model_free(speaker.model);
    }
    return 0;
}
