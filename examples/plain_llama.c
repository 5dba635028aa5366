/* Continues a prompt greedily: nothing but llama.h. Built against the patched libllama, a model that does not fit is streamed.
 *
 *     plain_llama MODEL PROMPT TOKEN_COUNT
 */

#include <llama.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT_TOKENS = 512 };

static void print_errors(enum ggml_log_level level, const char *text, void *user_data) {
    (void)user_data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static struct llama_model *load(const char *path) {
    struct llama_model_params params = llama_model_default_params();
    /* Weights as the file has them, whether there is room for them or not: the text is the same either way. */
    params.use_extra_bufts = false;
    return llama_model_load_from_file(path, params);
}

static int print_token(const struct llama_vocab *vocab, llama_token token) {
    char piece[256];
    int32_t length = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, true);
    return length >= 0 && fwrite(piece, 1, (size_t)length, stdout) == (size_t)length ? 0 : -1;
}

/* What went wrong, or NULL. */
static const char *continue_prompt(struct llama_context *context, struct llama_sampler *sampler, const char *prompt, int count) {
    const struct llama_vocab *vocab = llama_model_get_vocab(llama_get_model(context));
    llama_token tokens[CONTEXT_TOKENS];
    int32_t prompt_count =
        llama_tokenize(vocab, prompt, (int32_t)strlen(prompt), tokens, CONTEXT_TOKENS, true, true);
    struct llama_batch batch = llama_batch_get_one(tokens, prompt_count);

    if (prompt_count <= 0 || count > CONTEXT_TOKENS - prompt_count) {
        return "the prompt is empty, or does not leave room for so many tokens";
    }
    for (int i = 0; i < count; i++) {
        llama_token token;
        if (llama_decode(context, batch) != 0) {
            return "computing failed";
        }
        token = llama_sampler_sample(sampler, context, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            return NULL;
        }
        if (print_token(vocab, token) != 0) {
            return "cannot print";
        }
        tokens[0] = token;
        batch = llama_batch_get_one(tokens, 1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    struct llama_context_params params = llama_context_default_params();
    struct llama_model *model;
    struct llama_context *context;
    struct llama_sampler *sampler;
    const char *failure = "cannot load the model";
    char *end = NULL;
    long count = argc == 4 ? strtol(argv[3], &end, 10) : 0;

    if (count < 1 || count > CONTEXT_TOKENS || *end != '\0') {
        fprintf(stderr, "usage: plain_llama MODEL PROMPT TOKEN_COUNT (1 to %d)\n", CONTEXT_TOKENS);
        return 2;
    }
    llama_log_set(print_errors, NULL);
    ggml_backend_load_all();
    params.n_ctx = CONTEXT_TOKENS;
    sampler = llama_sampler_init_greedy();
    model = load(argv[1]);
    context = model != NULL ? llama_init_from_model(model, params) : NULL;
    if (context != NULL) {
        failure = continue_prompt(context, sampler, argv[2], (int)count);
        printf("\n");
    }
    if (failure != NULL) {
        fprintf(stderr, "plain_llama: %s\n", failure);
    }
    llama_sampler_free(sampler);
    llama_free(context);
    llama_model_free(model);
    return failure == NULL ? 0 : 1;
}
