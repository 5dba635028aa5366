// Makes and frees contexts of a streamed model, cancels prompts and forks, all while a thread decodes, and exits;
// prints what came of it.
//
//     comings MODEL
//
// Whatever the others do, the decoding thread must get the same tokens every time, and the process must end by itself.

#include "ggml-backend.h"
#include "llama.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

using context_ptr = std::unique_ptr<llama_context, decltype(&llama_free)>;
using tokens = std::vector<llama_token>;

static const int N_PROMPT = 64;

// cancels a prompt after so many questions whether to go on; never if negative
struct patience {
    std::atomic<int> left { -1 };
};

static bool is_over(void * data) {
    std::atomic<int> & left = ((patience *) data)->left;
    return left >= 0 && left-- == 0;
}

static context_ptr new_context(llama_model * model, patience * patience) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    params.abort_callback = patience ? is_over : nullptr;
    params.abort_callback_data = patience;
    return context_ptr(llama_init_from_model(model, params), llama_free);
}

static int32_t decode(llama_context * ctx, tokens batch) {
    return llama_decode(ctx, llama_batch_get_one(batch.data(), batch.size()));
}

static llama_token likeliest(llama_context * ctx) {
    const float * logits = llama_get_logits_ith(ctx, -1);
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    return std::max_element(logits, logits + n_vocab) - logits;
}

static tokens prompt() {
    tokens result;
    for (int i = 0; i < N_PROMPT; ++i) {
        result.push_back(1000 + i * 37 % 20000);
    }
    return result;
}

// some tokens after the prompt, in an emptied context; fewer if something failed
static tokens generate(llama_context * ctx, int n) {
    llama_memory_clear(llama_get_memory(ctx), true);
    tokens result;
    tokens next = prompt();
    for (int i = 0; i < n && decode(ctx, next) == 0; ++i) {
        result.push_back(likeliest(ctx));
        next = { result.back() };
    }
    return result;
}

static const char * say(bool yes) { return yes ? "yes" : "no"; }

// whether a child that does this ends by itself, successfully, within a minute
static bool child_ends(void (*leave)(int)) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        leave(0);
    }
    int status = -1;
    for (int i = 0; i < 6000; ++i) {
        if (waitpid(child, &status, WNOHANG) == child) {
            return WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return false;
}

// prompts that are cancelled in the middle, each in a context of its own; how many were, and whether the next one was
// right
static void cancel_prompts(llama_model * model, const tokens & right) {
    int n_cancelled = 0;
    bool are_right = true;
    for (int i = 0; i < 6; ++i) {
        patience waits;
        context_ptr ctx = new_context(model, &waits);
        waits.left = 20 + 150 * i;
        n_cancelled += decode(ctx.get(), prompt()) == 2;
        waits.left = -1;
        are_right = are_right && (i % 2 || generate(ctx.get(), 4) == tokens(right.begin(), right.begin() + 4));
    }
    printf("prompts are cancelled: %s\n", say(n_cancelled > 0));
    printf("what follows them is right: %s\n", say(are_right));
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: comings MODEL\n");
        return 2;
    }
    ggml_backend_load_all();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fprintf(stderr, "comings: cannot load the model\n");
        return 1;
    }
    context_ptr * steady =
            new context_ptr(new_context(model, nullptr)); // never freed, like the model: the process exits with both
    const tokens right = generate(steady->get(), 8);

    std::atomic<bool> is_wrong { false }, ends { false };
    std::atomic<int> n_rounds { 0 };
    std::thread decoding([&] {
        while (!ends) {
            is_wrong = is_wrong || generate(steady->get(), 8) != right;
            n_rounds++;
        }
    });

    cancel_prompts(model, right);
    printf("a child that leaves ends: %s\n", say(child_ends(_exit)));
    printf("a child that exits ends: %s\n", say(child_ends(exit)));
    const int before = n_rounds;
    while (n_rounds < before + 2 && !is_wrong) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    // llama.cpp's own globals must not go while somebody computes; ours may, while the drive still reads ahead
    ends = true;
    decoding.join();
    printf("the steady one is right: %s\n", say(right.size() == 8 && !is_wrong));
    exit(0);
}
