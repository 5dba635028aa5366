// Asks of streamed weights what ggml gives no way to refuse, while their file is cut, and prints what came of it.
//
//     hardships MODEL
//
// Nothing may end the process, and nothing may be computed on what was not read.

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

// The last streamed weight of a pass: it lies in the second half of the file.
static bool note_weight(ggml_tensor * t, bool, void * weight) {
    const bool is_streamed = t->op == GGML_OP_MUL_MAT && t->src[0]->buffer
            && std::string(ggml_backend_buffer_name(t->src[0]->buffer)) == "Hypura";
    if (is_streamed) {
        *(ggml_tensor **) weight = t->src[0];
    }
    return false;
}

static std::vector<char> read_file(const char * path) {
    std::ifstream file(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>() };
}

struct host {
    const char * path;
    std::vector<char> content = read_file(path);
    ggml_tensor * weight = nullptr;
    llama_model * model = nullptr;
    llama_context * ctx = nullptr;

    bool load() {
        llama_model_params model_params = llama_model_default_params();
        model_params.use_extra_bufts = false;
        llama_context_params params = llama_context_default_params();
        params.cb_eval = note_weight;
        params.cb_eval_user_data = &weight;
        model = llama_model_load_from_file(path, model_params);
        ctx = model ? llama_init_from_model(model, params) : nullptr;
        return ctx != nullptr;
    }

    void cut() { truncate(path, content.size() / 2); }

    void restore() { std::ofstream(path, std::ios::binary).write(content.data(), content.size()); }

    // the logits of a few tokens; empty if they cannot be computed
    std::vector<float> decode() {
        llama_memory_clear(llama_get_memory(ctx), true);
        llama_token tokens[] = { 1, 17, 23, 42 };
        if (llama_decode(ctx, llama_batch_get_one(tokens, 4)) != 0) {
            return {};
        }
        const float * logits = llama_get_logits_ith(ctx, -1);
        return { logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model)) };
    }
};

static void print(const char * what, bool yes) { printf("%s: %s\n", what, yes ? "yes" : "no"); }

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    host host { argc > 1 ? argv[1] : "" };
    if (!host.load()) {
        return 1;
    }
    const std::vector<float> right = host.decode();
    if (right.empty() || !host.weight) {
        return 2;
    }
    ggml_tensor * weight = host.weight;
    std::vector<char> bytes(ggml_nbytes(weight)), got(bytes.size());
    ggml_backend_tensor_get(weight, bytes.data(), 0, bytes.size());

    host.cut();
    ggml_backend_tensor_get(weight, got.data(), 0, got.size());
    print("a copy without its bytes is a weight", got == bytes);
    host.restore();
    print("what follows the copy is computed", !host.decode().empty());
    print("then all is well", host.decode() == right);

    std::vector<char> memory(ggml_tensor_overhead() * 8);
    ggml_context * ggml = ggml_init({ memory.size(), memory.data(), true });
    ggml_tensor * rows = ggml_get_rows(ggml, weight, ggml_new_tensor_1d(ggml, GGML_TYPE_I32, 2));
    ggml_backend_dev_t device = ggml_backend_dev_by_name("Hypura");
    host.cut();
    print("a lookup that cannot be prepared is left to others", !ggml_backend_dev_supports_op(device, rows));
    host.restore();
    print("then all is well", host.decode() == right);
    print("a lookup that can be prepared is left to others", !ggml_backend_dev_supports_op(device, rows));
    print("it finds the weight", memcmp(weight->data, bytes.data(), bytes.size()) == 0);
    print("then all is well", host.decode() == right);

    // Another one by now: what is in memory is nothing of ours any more.
    print("the next weight is streamed", host.weight != weight);
    ggml_backend_tensor_set(host.weight, bytes.data(), 0, 1);
    print("what is written to is computed with", !host.decode().empty());
    ggml_free(ggml);
    llama_free(host.ctx);
    llama_model_free(host.model);
    return 0;
}
