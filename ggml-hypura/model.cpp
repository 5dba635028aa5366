#include "context.h"

#include "ggml-hypura.h"

#include "ggml-impl.h"

#include <cstdio>

ggml_hypura_loading & ggml_hypura_current_loading() {
    static thread_local ggml_hypura_loading loading;
    return loading;
}

bool ggml_hypura_loading::takes(const char * name, size_t * index) const {
    return model && hypura_model_find_tensor(model->handle, name, index, nullptr, 0) == HYPURA_STATUS_OK
            && hypura_model_streams(model->handle, *index);
}

int64_t ggml_hypura_expert_count(const ggml_hypura_model & model, size_t index) {
    hypura_tensor_info info = {};
    info.size = sizeof(info);
    return hypura_model_tensor_info(model.handle, index, &info, nullptr, 0) == HYPURA_STATUS_OK
            ? (int64_t) info.expert_count
            : 0;
}

const ggml_hypura_tensor * ggml_hypura_find_tensor(const ggml_tensor * t) {
    if (t->view_src) {
        t = t->view_src;
    }
    return ggml_hypura_is_buffer(t->buffer) ? (const ggml_hypura_tensor *) t->extra : nullptr;
}

bool ggml_hypura_stands_aside(int32_t status, int32_t setting, const char * reason) {
    if (setting == HYPURA_SETTING_STREAM || status == HYPURA_STATUS_CONFIG || status == HYPURA_STATUS_BUDGET) {
        return false;
    }
    GGML_LOG_WARN("hypura: nothing is streamed: %s\n", reason);
    return true;
}

static void loader_begin(const char * const * paths, size_t n_paths) {
    ggml_hypura_current_loading() = {};
    ggml_hypura_current_loading().paths.assign(paths, paths + n_paths);
}

static_assert(int(GGML_BACKEND_HYPURA_PLACE_DEVICE) == int(HYPURA_PLACE_DEVICE), "one set of numbers");
static_assert(int(GGML_BACKEND_HYPURA_PLACE_RAM) == int(HYPURA_PLACE_RAM), "one set of numbers");
static_assert(int(GGML_BACKEND_HYPURA_PLACE_SPARE) == int(HYPURA_PLACE_SPARE), "one set of numbers");
static_assert(int(GGML_BACKEND_HYPURA_PLACE_REMOTE) == int(HYPURA_PLACE_REMOTE), "one set of numbers");

static void loader_override_key(const char * key, uint64_t value) {
    ggml_hypura_current_loading().overrides.emplace_back(key, value);
}

static int32_t open_model(
        const ggml_hypura_loading & loading, ggml_hypura_model & model, char * error, size_t error_size) {
    std::vector<const char *> paths;
    for (const auto & path : loading.paths) {
        paths.push_back(path.c_str());
    }
    int32_t status = hypura_model_open(paths.data(), paths.size(), nullptr, &model.handle, error, error_size);
    for (const auto & [key, value] : loading.overrides) {
        if (status == HYPURA_STATUS_OK) {
            status = hypura_model_override(model.handle, key.c_str(), value, error, error_size);
        }
    }
    return status;
}

static bool loader_plan(ggml_backend_hypura_place (*place)(const char *, void *), void * user_data, bool * streamed,
        char * error, size_t error_size) {
    ggml_hypura_loading & loading = ggml_hypura_current_loading();
    *streamed = false;

    int32_t setting = HYPURA_SETTING_OFF;
    if (hypura_setting_from_environment(&setting, error, error_size) != HYPURA_STATUS_OK) {
        return false;
    }
    if (setting == HYPURA_SETTING_OFF || loading.paths.empty()) {
        return true;
    }

    auto model = std::make_shared<ggml_hypura_model>();
    int32_t status = open_model(loading, *model, error, error_size);
    if (status != HYPURA_STATUS_OK) {
        return ggml_hypura_stands_aside(status, setting, error);
    }

    std::vector<uint8_t> places(hypura_model_tensor_count(model->handle));
    for (size_t i = 0; i < places.size(); ++i) {
        hypura_tensor_info info = {};
        info.size = sizeof(info);
        if (hypura_model_tensor_info(model->handle, i, &info, error, error_size) != HYPURA_STATUS_OK) {
            return false;
        }
        places[i] = place(info.name, user_data);
    }

    hypura_plan plan = {};
    plan.size = sizeof(plan);
    status = hypura_model_plan(model->handle, places.data(), places.size(), &plan, error, error_size);
    if (status != HYPURA_STATUS_OK) {
        return ggml_hypura_stands_aside(status, setting, error);
    }
    *streamed = plan.streamed_tensor_count > 0;
    if (*streamed) {
        loading.model = std::move(model);
    }
    return true;
}

static bool loader_bind(const ggml_tensor * tensor, size_t file, size_t offset, char * error, size_t error_size) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(tensor);
    if (!t) {
        snprintf(error, error_size, "%s is not streamed", tensor->name);
        return false;
    }
    return hypura_model_bind(t->model->handle, t->index, file, offset, ggml_nbytes(tensor), error, error_size)
            == HYPURA_STATUS_OK;
}

static void loader_end() {
    if (const auto & model = ggml_hypura_current_loading().model) {
        hypura_model_loaded(model->handle);
    }
    ggml_hypura_current_loading() = {};
}

static bool loader_is_streamed(const ggml_tensor * tensor) { return ggml_hypura_find_tensor(tensor) != nullptr; }

static std::atomic<bool> micro_batch_is_kept { false };

void ggml_hypura_keep_micro_batch() { micro_batch_is_kept = true; }

static size_t loader_micro_batch(const ggml_tensor * tensor, size_t n_batch, size_t n_ubatch) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(tensor);
    return t && !micro_batch_is_kept ? hypura_model_micro_batch(t->model->handle, n_batch, n_ubatch) : n_ubatch;
}

static void loader_make_room(size_t size) { hypura_make_room(size); }

static void loader_use_remote(const ggml_tensor * tensor, ggml_backend_dev_t dev, const ggml_tensor * matrix) {
    if (const ggml_hypura_tensor * t = ggml_hypura_find_tensor(tensor)) {
        ggml_hypura_measure_remote(dev, matrix->type, *t->model);
    }
}

static bool loader_copy(const ggml_backend_hypura_copy * copy) { return hypura::copy_weight(*copy); }

static double loader_worth(const ggml_tensor * weight, int32_t expert) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(weight);
    return t ? hypura_copy_worth(t->model->handle, t->index, expert) : 0;
}

static size_t loader_vram_budget(const ggml_tensor * tensor, size_t free, size_t total) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(tensor);
    return t ? hypura_copy_budget(t->model->handle, free, total) : 0;
}

static size_t loader_vram_budget_now(const ggml_tensor * tensor, size_t held, size_t free, size_t total) {
    const ggml_hypura_tensor * t = ggml_hypura_find_tensor(tensor);
    return t ? hypura_copy_budget_now(t->model->handle, held, free, total) : 0;
}

static void loader_note_vram(const ggml_tensor * tensor, int64_t bytes) {
    if (const ggml_hypura_tensor * t = ggml_hypura_find_tensor(tensor)) {
        hypura_copy_note_memory(t->model->handle, bytes);
    }
}

const ggml_backend_hypura_loader * ggml_hypura_get_loader() {
    static const ggml_backend_hypura_loader loader = {
        /* .version     = */ GGML_BACKEND_HYPURA_LOADER_VERSION,
        /* .begin       = */ loader_begin,
        /* .override_key = */ loader_override_key,
        /* .plan        = */ loader_plan,
        /* .bind        = */ loader_bind,
        /* .end         = */ loader_end,
        /* .is_streamed = */ loader_is_streamed,
        /* .micro_batch = */ loader_micro_batch,
        /* .make_room   = */ loader_make_room,
        /* .expect      = */ hypura::expect,
        /* .expect_rows = */ hypura::expect_rows,
        /* .use_device  = */ hypura::use_device,
        /* .use_remote  = */ loader_use_remote,
        /* .copy        = */ loader_copy,
        /* .finish_copies = */ hypura::finish_copies_of,
        /* .add_copy    = */ hypura::add_copy,
        /* .worth       = */ loader_worth,
        /* .drop_copy   = */ hypura::drop_copy,
        /* .vram_budget = */ loader_vram_budget,
        /* .vram_budget_now = */ loader_vram_budget_now,
        /* .note_vram   = */ loader_note_vram,
    };
    return &loader;
}
