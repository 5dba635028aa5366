// Uses streamed models from several threads at once, for ThreadSanitizer to watch; prints what came of it.
//
//     races ROUNDS MODEL MODEL MODEL
//     races canary
//
// Contexts of the first two models decode all the time. Meanwhile, ROUNDS times each, others make contexts and free
// them, cancel prompts in the middle, copy a streamed weight, and load the third model and unload it. All of them must
// get the same logits every time. The canary is a race, which must be found.

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using model_ptr = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using context_ptr = std::unique_ptr<llama_context, decltype(&llama_free)>;

static const int N_PROMPT = 48;
static const int N_TOKENS = 4;

// what a model has said: its tokens, and a hash of all bits of the logits that they were chosen by
struct text {
    std::vector<llama_token> tokens;
    uint64_t hash = 14695981039346656037u; // FNV-1a

    bool operator==(const text & other) const { return tokens == other.tokens && hash == other.hash; }

    void add(const float * logits, int32_t n) {
        for (size_t i = 0; i < n * sizeof(float); ++i) {
            hash = (hash ^ ((const uint8_t *) logits)[i]) * 1099511628211u;
        }
        tokens.push_back(std::max_element(logits, logits + n) - logits);
    }
};

// cancels a prompt after so many questions whether to go on; never if negative
struct patience {
    std::atomic<int> left { -1 };
};

static bool is_over(void * data) {
    std::atomic<int> & left = ((patience *) data)->left;
    return left >= 0 && left-- == 0;
}

static model_ptr load(const char * path) {
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = false; // repacked weights select other kernels
    model_ptr model(llama_model_load_from_file(path, params), llama_model_free);
    if (!model) {
        fprintf(stderr, "races: cannot load %s\n", path);
        exit(1);
    }
    return model;
}

static context_ptr new_context(
        const model_ptr & model, int n_threads, patience * patience = nullptr, const ggml_tensor ** weight = nullptr) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 128;
    params.n_threads = n_threads;
    params.n_threads_batch = n_threads;
    params.abort_callback = patience ? is_over : nullptr;
    params.abort_callback_data = patience;
    if (weight) { // the last streamed one of a pass
        params.cb_eval_user_data = weight;
        params.cb_eval = [](ggml_tensor * t, bool, void * weight) {
            const bool is_product = t->op == GGML_OP_MUL_MAT || t->op == GGML_OP_MUL_MAT_ID;
            if (is_product && t->src[0]->buffer && strcmp(ggml_backend_buffer_name(t->src[0]->buffer), "Hypura") == 0) {
                *(const ggml_tensor **) weight = t->src[0];
            }
            return false;
        };
    }
    return context_ptr(llama_init_from_model(model.get(), params), llama_free);
}

static int32_t decode(const context_ptr & ctx, std::vector<llama_token> batch) {
    return llama_decode(ctx.get(), llama_batch_get_one(batch.data(), batch.size()));
}

static int32_t vocab_size(const context_ptr & ctx) {
    return llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx.get())));
}

static std::vector<llama_token> prompt(const context_ptr & ctx) {
    std::vector<llama_token> result;
    for (int i = 0; i < N_PROMPT; ++i) {
        result.push_back(i * 37 % vocab_size(ctx));
    }
    return result;
}

// some tokens after the prompt, in an emptied context; fewer if something failed
static text generate(const context_ptr & ctx) {
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    text result;
    std::vector<llama_token> next = prompt(ctx);
    for (int i = 0; i < N_TOKENS && decode(ctx, next) == 0; ++i) {
        result.add(llama_get_logits_ith(ctx.get(), -1), vocab_size(ctx));
        next = { result.tokens.back() };
    }
    return result;
}

// a model, and what it has to say
struct known_model {
    const char * path;
    model_ptr model { load(path) };
    text right { generate(new_context(model, 2)) };

    bool is_right(const text & said) const { return said.tokens.size() == (size_t) N_TOKENS && said == right; }
};

// what went wrong, and what was to happen at least once
struct outcome {
    std::atomic<bool> is_wrong { false };
    std::atomic<int> n_cancelled { 0 }, n_copied { 0 };
};

static void come_and_go(const known_model & known, int round, outcome & outcome) {
    outcome.is_wrong = outcome.is_wrong || !known.is_right(generate(new_context(known.model, 1 + round % 2)));
}

// a prompt that is cancelled in the middle, and whether the next one is right
static void cancel(const known_model & known, int round, outcome & outcome) {
    patience patience;
    context_ptr ctx = new_context(known.model, 1, &patience);
    patience.left = 10 + 30 * (round % 8);
    outcome.n_cancelled += decode(ctx, prompt(ctx)) == 2;
    patience.left = -1;
    outcome.is_wrong = outcome.is_wrong || !known.is_right(generate(ctx));
}

static void copy_weight(const known_model & known, outcome & outcome) {
    const ggml_tensor * weight = nullptr;
    context_ptr ctx = new_context(known.model, 1, nullptr, &weight);
    outcome.is_wrong = outcome.is_wrong || !known.is_right(generate(ctx));
    if (weight) {
        std::vector<char> bytes(ggml_nbytes(weight));
        ggml_backend_tensor_get(weight, bytes.data(), 0, bytes.size());
        outcome.n_copied++;
    }
}

static void load_and_unload(const char * path, const text & right, outcome & outcome) {
    const model_ptr model = load(path);
    outcome.is_wrong = outcome.is_wrong || !(generate(new_context(model, 1)) == right);
}

static int canary() {
    int counter = 0;
    std::thread other([&] { counter++; });
    counter++;
    other.join();
    printf("%d\n", counter);
    return 0;
}

int main(int argc, char ** argv) {
    if (argc == 2 && std::string(argv[1]) == "canary") {
        return canary();
    }
    if (argc != 5) {
        fprintf(stderr, "usage: races ROUNDS MODEL MODEL MODEL\n");
        return 2;
    }
    const int n_rounds = atoi(argv[1]);
    ggml_backend_load_all();
    const known_model first { argv[2] }, second { argv[3] };
    const text third = known_model { argv[4] }.right;

    outcome outcome;
    std::atomic<bool> ends { false };
    std::vector<std::thread> steady, visitors;
    for (const known_model * known : { &first, &first, &second }) {
        steady.emplace_back([&, known, n_threads = 1 + (int) steady.size() % 2] {
            const context_ptr ctx = new_context(known->model, n_threads);
            while (!ends) {
                outcome.is_wrong = outcome.is_wrong || !known->is_right(generate(ctx));
            }
        });
    }
    const std::function<void(int)> visits[] = {
        [&](int round) { come_and_go(round % 2 ? first : second, round, outcome); },
        [&](int round) { cancel(round % 2 ? second : first, round, outcome); },
        [&](int round) { copy_weight(round % 2 ? first : second, outcome); },
        [&](int) { load_and_unload(argv[4], third, outcome); },
    };
    for (const auto & visit : visits) {
        visitors.emplace_back([&] {
            for (int round = 0; round < n_rounds; ++round) {
                visit(round);
            }
        });
    }
    for (std::thread & thread : visitors) {
        thread.join();
    }
    ends = true;
    for (std::thread & thread : steady) {
        thread.join();
    }
    for (const text * right : { &first.right, &second.right, &third }) {
        printf("logits: %zu tokens, %016llx\n", right->tokens.size(), (unsigned long long) right->hash);
    }
    printf("prompts were cancelled: %s\n", outcome.n_cancelled > 0 ? "yes" : "no");
    printf("weights were copied: %s\n", outcome.n_copied > 0 ? "yes" : "no");
    printf("all were right: %s\n", outcome.is_wrong ? "no" : "yes");
    return 0;
}
