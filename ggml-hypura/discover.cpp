// For a llama.cpp without our patches: libhypura finds out which model is being loaded, when its first weight is
// offered, and makes sure of each streamed tensor when the loader hands over its bytes.

#include "model.h"

#include "ggml-impl.h"

static void forget() { ggml_hypura_current_loading() = {}; }

void ggml_hypura_forget_if_loaded() {
    const auto & found = ggml_hypura_current_loading().found;
    if (found && !hypura_model_is_loading(found->handle)) {
        forget();
    }
}

// says it once for all weights of a model
static void say_why_not(const char * reason) {
    static thread_local std::string last;
    if (last != reason) {
        last = reason;
        GGML_LOG_WARN("hypura: nothing is streamed: %s\n", reason);
    }
}

void ggml_hypura_discover(const ggml_tensor * weight) {
    ggml_hypura_forget_if_loaded();
    ggml_hypura_loading & loading = ggml_hypura_current_loading();
    if (!loading.paths.empty() || loading.found) {
        return;
    }
    loading = {};

    char error[1024];
    int32_t setting = HYPURA_SETTING_OFF;
    if (hypura_setting_from_environment(&setting, error, sizeof(error)) != HYPURA_STATUS_OK) {
        loading.refusal = error;
        return;
    }
    if (setting == HYPURA_SETTING_OFF) {
        return;
    }

    auto model = std::make_shared<ggml_hypura_model>();
    if (hypura_model_discover(
                weight->name, weight->type, ggml_nbytes(weight), nullptr, &model->handle, error, sizeof(error))
            != HYPURA_STATUS_OK) {
        say_why_not(error);
        return;
    }
    if (!model->handle) {
        return;
    }
    // Which layers go to a GPU is not known: what is never offered is never streamed.
    hypura_plan plan = {};
    plan.size = sizeof(plan);
    const int32_t status = hypura_model_plan(model->handle, nullptr, 0, &plan, error, sizeof(error));
    if (status != HYPURA_STATUS_OK && !ggml_hypura_stands_aside(status, setting, error)) {
        loading.refusal = error;
        return;
    }
    if (plan.streamed_tensor_count > 0) {
        loading.model = model;
    }
    loading.found = std::move(model);
}

bool ggml_hypura_receive(ggml_hypura_tensor & awaited, const ggml_tensor * tensor, const void * data, size_t size) {
    char error[1024];
    const bool is_bound = hypura_model_bind_memory(awaited.model->handle, awaited.index, (const uint8_t *) data, size,
                                  error, sizeof(error))
            == HYPURA_STATUS_OK;
    if (!is_bound) {
        GGML_LOG_WARN("hypura: %s is kept in memory: %s\n", tensor->name, error);
    }
    awaited.is_awaited = false;
    if (--awaited.model->n_awaited == 0) {
        hypura_model_loaded(awaited.model->handle);
        if (ggml_hypura_current_loading().found == awaited.model) {
            forget();
        }
    }
    return is_bound;
}
