// Computes the logits of a text, a token at a time, while the memory of a GPU becomes short, and prints what it leaves
// free.
//
//     vram_hardships MODEL TEXT OUTPUT HARDSHIP [CONTEXT]
//
// A plain llama.h program: it knows nothing of libhypura. All layers are on the GPU, their experts in RAM. Others'
// memory, and what results want behind themselves, are files that the test device looks at (gpu_device.cpp). OUTPUT-1,
// and OUTPUT-2 of a second context, are the logits. HARDSHIP is what happens between tokens:
//
//   none     nothing
//   process  another process takes what is free, and gives it back later
//   context  another thread makes a second context of CONTEXT tokens, while it is asked what memory the first one has
//   thread   another thread makes one while tokens are computed
//   buffers  buffers for computing are made anew, where another process has taken what is free
//   graph    a graph wants more memory than was reserved for it, where there is none
//   full     another process has nearly all from the beginning, and gives it back later

#include "ggml-backend.h"
#include "llama.h"
#include "../src/llama-ext.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

constexpr size_t MIB = 1 << 20;
// more than lies between two looks at what is free
constexpr std::chrono::milliseconds PAUSE(250);

using model_ptr = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using context_ptr = std::unique_ptr<llama_context, decltype(&llama_free)>;

static void set_bytes(const char * variable, size_t bytes) {
    if (const char * path = getenv(variable)) {
        std::ofstream(path, std::ios::app).close();
        std::filesystem::resize_file(path, bytes);
    }
}

static size_t free_bytes() {
    size_t free = 0;
    size_t total = 0;
    ggml_backend_dev_memory(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU), &free, &total);
    return free;
}

// nothing is free, and `more` is missing
static size_t take_all(size_t more) {
    const size_t taken = free_bytes() + more;
    set_bytes("HYPURA_TEST_GPU_TAKEN", taken);
    return taken;
}

static void print_free(const char * when, size_t taken = 0) {
    printf("%s: %zu MiB free but for others\n", when, (free_bytes() + taken) / MIB);
    fflush(stdout);
}

static model_ptr load(const char * path) {
    const llama_model_tensor_buft_override on_cpu[] = { { "ffn_.*_exps", ggml_backend_cpu_buffer_type() },
        { nullptr, nullptr } };
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = false;
    params.n_gpu_layers = 99;
    params.tensor_buft_overrides = on_cpu;
    return model_ptr(llama_model_load_from_file(path, params), llama_model_free);
}

struct host {
    context_ptr ctx;
    const std::vector<llama_token> & text;
    std::vector<float> logits;
    size_t n_done = 0;

    host(llama_model * model, const std::vector<llama_token> & text, uint32_t n_ctx)
        : ctx(make(model, n_ctx), llama_free), text(text) {}

    static llama_context * make(llama_model * model, uint32_t n_ctx) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = n_ctx;
        params.n_batch = 64;
        params.n_ubatch = 64;
        params.n_threads = 2;
        params.n_threads_batch = 2;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        return llama_init_from_model(model, params);
    }

    bool decode(int n_positions) {
        const size_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx.get())));
        for (int i = 0; i < n_positions; ++i) {
            llama_token token = text[n_done];
            if (llama_decode(ctx.get(), llama_batch_get_one(&token, 1)) != 0) {
                fprintf(stderr, "vram_hardships: llama_decode failed at %zu\n", n_done);
                return false;
            }
            const float * values = llama_get_logits_ith(ctx.get(), -1);
            logits.insert(logits.end(), values, values + n_vocab);
            n_done++;
        }
        return true;
    }

    // computes the next token, but not its logits, and forgets it: a graph is made for that, and another one for what
    // follows
    bool try_next() {
        llama_token token = text[n_done];
        int8_t no_logits = 0;
        llama_batch batch = llama_batch_get_one(&token, 1);
        batch.logits = &no_logits;
        return llama_decode(ctx.get(), batch) == 0 && llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, n_done, -1);
    }

    bool write(const std::string & path) const {
        std::ofstream file(path, std::ios::binary);
        file.write((const char *) logits.data(), logits.size() * sizeof(float));
        return bool(file.flush());
    }

    // every layer is shifted by nothing; llama.cpp reserves again for it
    bool set_control_vector() {
        const llama_model * model = llama_get_model(ctx.get());
        const std::vector<float> zeros(llama_model_n_embd(model) * (llama_model_n_layer(model) - 1), 0.0f);
        return llama_set_adapter_cvec(
                       ctx.get(), zeros.data(), zeros.size(), llama_model_n_embd(model), 1, llama_model_n_layer(model))
                == 0;
    }
};

// others give back what they have taken; the cache waits for more than one look before it grows
static bool given_back(host & h) {
    set_bytes("HYPURA_TEST_GPU_TAKEN", 0);
    for (int i = 0; i < 12; ++i) {
        std::this_thread::sleep_for(PAUSE);
        if (!h.decode(1)) {
            return false;
        }
    }
    print_free("after");
    return true;
}

static bool beside_a_process(host & h) {
    print_free("before");
    const size_t taken = take_all(0) - 8 * MIB;
    set_bytes("HYPURA_TEST_GPU_TAKEN", taken);
    std::this_thread::sleep_for(PAUSE);
    const bool goes_on = h.decode(8);
    print_free("during", taken);
    return given_back(h) && goes_on;
}

static bool after_a_process(host & h, size_t taken) {
    print_free("before", taken);
    return given_back(h);
}

static bool beside_a_context(host & h, host * second) {
    return h.decode(8) && second->ctx && second->decode(8) && h.decode(8);
}

static bool with_new_buffers(host & h) {
    if (!h.set_control_vector() || !h.decode(8)) {
        return false;
    }
    std::this_thread::sleep_for(PAUSE);
    if (!h.decode(1)) {
        return false;
    }
    take_all(MIB);
    return h.set_control_vector() && h.decode(8);
}

static bool with_a_larger_graph(host & h) {
    std::this_thread::sleep_for(PAUSE);
    if (!h.decode(1)) {
        return false;
    }
    set_bytes("HYPURA_TEST_GPU_PADDING", 16 * MIB);
    take_all(0);
    const bool goes_on = h.try_next() && h.decode(8);
    set_bytes("HYPURA_TEST_GPU_PADDING", 0);
    return goes_on && h.decode(8);
}

static std::vector<llama_token> tokenize(const llama_model * model, const char * path) {
    std::ifstream file(path, std::ios::binary);
    const std::string text { std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>() };
    std::vector<llama_token> tokens(text.size() + 1);
    llama_tokenize(llama_model_get_vocab(model), text.data(), text.size(), tokens.data(), tokens.size(), false, false);
    return tokens;
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        fprintf(stderr,
                "usage: vram_hardships MODEL TEXT OUTPUT none|process|context|thread|buffers|graph|full [CONTEXT]\n");
        return 2;
    }
    ggml_backend_load_all();
    const model_ptr model = load(argv[1]);
    if (!model) {
        return 1;
    }
    const std::string hardship = argv[4];
    const auto tokens = tokenize(model.get(), argv[2]);
    size_t taken = 0;
    if (hardship == "full") {
        taken = take_all(0) - 64 * MIB;
        set_bytes("HYPURA_TEST_GPU_TAKEN", taken);
    }
    host first(model.get(), tokens, 256);
    std::unique_ptr<host> second;
    const auto make_second = [&] { second = std::make_unique<host>(model.get(), tokens, atoi(argv[5])); };

    bool goes_on = first.ctx && first.decode(24);
    if (goes_on && hardship == "none") {
        goes_on = first.decode(104);
    } else if (goes_on && hardship == "full") {
        goes_on = after_a_process(first, taken);
    } else if (goes_on && hardship == "process") {
        goes_on = beside_a_process(first);
    } else if (goes_on && hardship == "context") {
        print_free("before");
        std::atomic<bool> is_made = false;
        std::thread other([&] {
            make_second();
            is_made = true;
        });
        while (!is_made) {
            llama_get_memory_breakdown(first.ctx.get());
        }
        other.join();
        print_free("after");
        goes_on = beside_a_context(first, second.get());
    } else if (goes_on && hardship == "thread") {
        std::thread other([&] { make_second(); });
        goes_on = first.decode(48);
        other.join();
        goes_on = goes_on && beside_a_context(first, second.get());
    } else if (goes_on && hardship == "buffers") {
        goes_on = with_new_buffers(first);
    } else if (goes_on && hardship == "graph") {
        goes_on = with_a_larger_graph(first);
    }

    goes_on = first.write(argv[3] + std::string("-1")) && goes_on;
    return goes_on && (!second || second->write(argv[3] + std::string("-2"))) ? 0 : 3;
}
