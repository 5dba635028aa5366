// Writes the logits of every position of a text, as float32, so that two runs can be compared bit for bit.
//
//   logits MODEL MODE POSITIONS TEXT OUTPUT [GPU_LAYERS [ON_CPU [SERVER]]]
//
// A plain llama.h program: it knows nothing of libhypura. What is fixed here decides which kernels run (batches,
// threads, flash attention, no weight repacking); the environment decides where the weights are. MODE is how the
// positions are grouped into batches:
//
//   single      one token at a time
//   ubatch      prompt micro-batches of 512
//   parallel    four sequences, one token of each at a time
//   embeddings  one micro-batch, of a model that computes an embedding of every token instead of logits
//
// A model with an encoder and a decoder reads the text with the one before it computes the logits of the same text with
// the other.
//
// GPU_LAYERS is llama.cpp's -ngl; weights whose names match the regular expression ON_CPU stay in RAM. The devices of
// SERVER, HOST:PORT, take part (--rpc).

#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

constexpr int N_THREADS = 2;
constexpr int N_UBATCH = 512;
constexpr int N_SEQUENCES = 4;
constexpr int N_ENCODED = 32;

static std::vector<llama_token> tokenize(const llama_vocab * vocab, const char * path, size_t n_tokens) {
    std::ifstream file(path, std::ios::binary);
    const std::string text { std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>() };
    std::vector<llama_token> tokens(text.size() + 1);
    const int32_t n = llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), false, false);
    if (n <= 0) {
        return {};
    }
    tokens.resize(n);
    for (size_t i = 0; tokens.size() < n_tokens; ++i) {
        tokens.push_back(tokens[i]);
    }
    return tokens;
}

// the positions of one llama_decode, and which of the text's tokens stand there
static void add(llama_batch & batch, llama_token token, llama_pos pos, llama_seq_id sequence) {
    batch.token[batch.n_tokens] = token;
    batch.pos[batch.n_tokens] = pos;
    batch.n_seq_id[batch.n_tokens] = 1;
    batch.seq_id[batch.n_tokens][0] = sequence;
    batch.logits[batch.n_tokens] = true;
    batch.n_tokens++;
}

static int decode_and_write(llama_context * ctx, const llama_batch & batch, bool embeddings, FILE * output) {
    const llama_model * model = llama_get_model(ctx);
    const size_t n_values = embeddings ? llama_model_n_embd(model) : llama_vocab_n_tokens(llama_model_get_vocab(model));
    const int32_t status = llama_decode(ctx, batch);
    if (status != 0) {
        fprintf(stderr, "logits: llama_decode failed with status %d\n", status);
        return 3;
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const float * values = embeddings ? llama_get_embeddings_ith(ctx, i) : llama_get_logits_ith(ctx, i);
        if (!values || fwrite(values, sizeof(float), n_values, output) != n_values) {
            perror("logits: cannot write");
            return 4;
        }
    }
    return 0;
}

static bool add_server(const char * endpoint) {
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    void * add = rpc ? ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server") : nullptr;
    ggml_backend_reg_t server = add ? ((ggml_backend_reg_t (*)(const char *)) add)(endpoint) : nullptr;
    if (server) {
        ggml_backend_register(server);
    }
    return server != nullptr;
}

int main(int argc, char ** argv) {
    if (argc < 6 || argc > 9) {
        fprintf(stderr,
                "usage: logits MODEL single|ubatch|parallel|embeddings POSITIONS TEXT OUTPUT [GPU_LAYERS [ON_CPU "
                "[SERVER]]]\n");
        return 2;
    }
    const std::string mode = argv[2];
    const int n_positions = atoi(argv[3]);
    const int n_sequences = mode == "parallel" ? N_SEQUENCES : 1;
    const bool embeddings = mode == "embeddings";
    const int n_step = mode == "ubatch" || embeddings ? n_positions : n_sequences;
    if ((mode != "single" && mode != "ubatch" && mode != "parallel" && !embeddings) || n_positions <= 0
            || n_positions % n_step != 0) {
        fprintf(stderr, "logits: bad mode or number of positions\n");
        return 2;
    }

    ggml_backend_load_all();
    if (argc > 8 && !add_server(argv[8])) {
        fprintf(stderr, "logits: no device at %s\n", argv[8]);
        return 1;
    }

    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = false;
    const llama_model_tensor_buft_override on_cpu[] = {
        { argc > 7 ? argv[7] : nullptr, ggml_backend_cpu_buffer_type() }, { nullptr, nullptr }
    };
    if (argc > 6) {
        model_params.n_gpu_layers = atoi(argv[6]);
        model_params.tensor_buft_overrides = argc > 7 ? on_cpu : nullptr;
    }
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
            llama_model_load_from_file(argv[1], model_params), llama_model_free);
    if (!model) {
        fprintf(stderr, "logits: cannot load the model\n");
        return 1;
    }

    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_positions + 64 * n_sequences;
    params.n_batch = llama_model_has_encoder(model.get()) ? std::max(n_step, N_ENCODED) : n_step;
    params.n_ubatch = N_UBATCH;
    params.n_seq_max = n_sequences;
    params.n_threads = N_THREADS;
    params.n_threads_batch = N_THREADS;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.embeddings = embeddings;
    params.pooling_type = embeddings ? LLAMA_POOLING_TYPE_NONE : LLAMA_POOLING_TYPE_UNSPECIFIED;
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx(llama_init_from_model(model.get(), params), llama_free);
    if (!ctx) {
        fprintf(stderr, "logits: cannot make a context\n");
        return 1;
    }

    const llama_vocab * vocab = llama_model_get_vocab(model.get());
    std::vector<llama_token> tokens = tokenize(vocab, argv[4], n_positions);
    if (tokens.empty()) {
        fprintf(stderr, "logits: %s has no text\n", argv[4]);
        return 2;
    }
    FILE * output = fopen(argv[5], "wb");
    if (!output) {
        perror("logits: cannot open the output");
        return 4;
    }

    llama_batch batch = llama_batch_init(n_step, 0, 1);
    const int n_positions_per_sequence = n_positions / n_sequences;
    const int n_tokens_per_sequence = n_step / n_sequences;
    int result = 0;
    if (llama_model_has_encoder(model.get())
            && llama_encode(ctx.get(), llama_batch_get_one(tokens.data(), N_ENCODED)) != 0) {
        fprintf(stderr, "logits: llama_encode failed\n");
        result = 3;
    }
    for (int pos = 0; pos < n_positions_per_sequence && result == 0; pos += n_tokens_per_sequence) {
        batch.n_tokens = 0;
        for (int sequence = 0; sequence < n_sequences; ++sequence) {
            for (int i = pos; i < pos + n_tokens_per_sequence; ++i) {
                add(batch, tokens[sequence * n_positions_per_sequence + i], i, sequence);
            }
        }
        result = decode_and_write(ctx.get(), batch, embeddings, output);
    }
    llama_batch_free(batch);
    if (fclose(output) != 0 && result == 0) {
        perror("logits: cannot write");
        result = 4;
    }
    return result;
}
