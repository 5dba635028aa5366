// Uses a model in all the ways that take memory, so that a test can watch what streaming does about it.
//
//   two_contexts MODEL PROMPT_TOKENS SECOND_CONTEXT
//
// A plain llama.h program: a long prompt and some tokens, then a second context of SECOND_CONTEXT tokens beside the
// first; from then on a token of each in turn, with a line on stdout for every pair, until stdin ends.

#include "llama.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

using context_ptr = std::unique_ptr<llama_context, decltype(&llama_free)>;

static context_ptr new_context(llama_model * model, uint32_t n_ctx) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_ctx;
    params.n_threads = 2;
    params.n_threads_batch = 2;
    return context_ptr(llama_init_from_model(model, params), llama_free);
}

// computes tokens after those that are there; the most likely next one, or -1
static llama_token decode(llama_context * ctx, std::vector<llama_token> tokens) {
    const int32_t n_batch = llama_n_batch(ctx);
    for (size_t i = 0; i < tokens.size(); i += n_batch) {
        const int32_t n = std::min<int32_t>(n_batch, tokens.size() - i);
        if (llama_decode(ctx, llama_batch_get_one(tokens.data() + i, n)) != 0) {
            return -1;
        }
    }
    const float * logits = llama_get_logits_ith(ctx, -1);
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    return std::max_element(logits, logits + n_vocab) - logits;
}

static bool stdin_ended() {
    pollfd input = { STDIN_FILENO, POLLIN, 0 };
    char byte;
    return poll(&input, 1, 0) > 0 && read(STDIN_FILENO, &byte, 1) <= 0;
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: two_contexts MODEL PROMPT_TOKENS SECOND_CONTEXT\n");
        return 2;
    }
    const int n_prompt = atoi(argv[2]);
    const int n_second = atoi(argv[3]);

    ggml_backend_load_all();
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
            llama_model_load_from_file(argv[1], llama_model_default_params()), llama_model_free);
    if (!model) {
        fprintf(stderr, "two_contexts: cannot load the model\n");
        return 1;
    }

    // unlike each other, so that all experts are used
    std::vector<llama_token> prompt;
    for (int i = 0; i < n_prompt; ++i) {
        prompt.push_back(1000 + i * 37 % 20000);
    }
    context_ptr first = new_context(model.get(), n_prompt + 1024);
    llama_token token = first ? decode(first.get(), prompt) : -1;
    for (int i = 0; i < 16 && token >= 0; ++i) {
        token = decode(first.get(), { token });
    }

    context_ptr second = new_context(model.get(), n_second);
    llama_token other = second ? decode(second.get(), { 1 }) : -1;
    while (token >= 0 && other >= 0) {
        printf("%d %d\n", token, other);
        fflush(stdout);
        if (stdin_ended()) {
            return 0;
        }
        token = decode(first.get(), { token });
        other = decode(second.get(), { other });
        // room for more
        llama_memory_seq_rm(llama_get_memory(first.get()), 0, n_prompt, -1);
        llama_memory_seq_rm(llama_get_memory(second.get()), 0, 1, -1);
    }
    fprintf(stderr, "two_contexts: cannot make a context or compute\n");
    return 1;
}
