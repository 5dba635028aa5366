// Prepares a model for training, and prints whether it may be trained.
//
//     trains MODEL

#include "llama.h"

#include <cstdio>
#include <exception>

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: trains MODEL\n");
        return 2;
    }
    ggml_backend_load_all();

    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);

    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_batch = 256;
    params.n_ubatch = 256;
    llama_context * ctx = model ? llama_init_from_model(model, params) : nullptr;
    if (!ctx) {
        return 3;
    }
    llama_opt_params opt_params = {};
    opt_params.n_ctx_train = 256;
    opt_params.param_filter = llama_opt_param_filter_all;
    opt_params.get_opt_pars = ggml_opt_get_default_optimizer_params;
    opt_params.optimizer_type = GGML_OPT_OPTIMIZER_TYPE_SGD;
    int result = 0;
    try {
        llama_opt_init(ctx, model, opt_params);
        printf("ready\n");
    } catch (const std::exception & refusal) {
        fprintf(stderr, "%s\n", refusal.what());
        result = 1;
    }
    llama_free(ctx);
    llama_model_free(model);
    return result;
}
