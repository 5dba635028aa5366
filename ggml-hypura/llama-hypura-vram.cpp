// The cache of experts that a context has in device memory.
//
// It takes what is left, and gives way to whatever else wants it: within the process, when an allocation has failed; to
// other processes, by looking at what is free before something is computed. A cache cannot be resized, so another one
// is made.
//
// Only the thread that computes with a context makes and replaces its cache. Another thread may take it away while
// nothing is computed
// (`is_busy`), or asks for that and waits.

#include "llama-hypura.h"

#include "ggml-hypura.h"
#include "llama-hypura-cache.h"

#include "llama-impl.h"
#include "llama-model.h"
#include "llama-moe-cache.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <utility>

using backend_list = std::vector<ggml_backend_t>;
using steady_clock = std::chrono::steady_clock;

// of ggml-backend.cpp, as it is patched
extern "C" {
GGML_API void ggml_backend_set_make_room(bool (*make_room)(ggml_backend_buffer_type_t buft, size_t size));
}

// how often drivers are asked what is free
constexpr std::chrono::milliseconds INTERVAL(200);
// how many times in a row much more must have been free for a larger cache, which begins empty; twice as many each time
constexpr int PATIENCE = 10;
constexpr int MOST_PATIENCE = 3000;
// how long an allocation waits for a context that computes
constexpr std::chrono::seconds LONGEST_WAIT(30);

// Of this thread. One that computes does not wait for another that does, and a cache takes nothing from others.
static thread_local int n_turns = 0;
static thread_local bool is_making_cache = false;

static double mebibytes(size_t bytes) { return bytes / 1024.0 / 1024.0; }

// a device with layers, whose experts it may hold
struct vram_device {
    ggml_backend_t backend;
    ggml_backend_dev_t dev;
    ggml_backend_buffer_type_t buft;
    float split; // of the model's layers, if that was given
    size_t all; // bytes of its layers' experts that are in host memory
    size_t held = 0;
    size_t asked = 0; // what it might have held

    bool is_full() const { return held >= all; }
};

struct llama_hypura_vram {
    const llama_model & model;
    backend_list backends; // of this machine: what a cache on another one holds would cross the network, and again when
                           // that changes
    std::vector<ggml_backend_buffer_type_t> bufts;
    std::unique_ptr<llama_moe_cache> & cache;
    const ggml_tensor * streamed;
    std::vector<vram_device> devices;

    // of the thread that computes
    bool is_new = true;
    steady_clock::time_point looked_at;
    int n_roomy = 0;
    int patience = PATIENCE;

    // guards the following, and `held`; and the cache while the context is not busy
    std::mutex mutex;
    std::condition_variable changed;
    bool is_busy = false;
    bool is_asked = false; // another thread wants the memory
    bool is_replaced = false; // since the context has reserved

    llama_hypura_vram(const llama_model & model, const backend_list & backends,
            const std::vector<ggml_backend_buffer_type_t> & bufts, std::unique_ptr<llama_moe_cache> & cache,
            const ggml_tensor * streamed);
    ~llama_hypura_vram();

    bool begin_turn();
    void end_turn();
    bool give_way();
    bool give_way_to(ggml_backend_dev_t dev, size_t size, bool may_wait);

private:
    enum class room { SHORT, ENOUGH, MUCH };

    room look() const;
    size_t size_of_new(std::vector<double> & shares) const;
    void make();
    void replace(const char * why);
    void fit();
    void drop();
    void synchronize() const;
    size_t held() const;
};

// all of the process, for allocations that fail; a context may be the last that goes
struct vram_registry {
    std::mutex mutex;
    std::vector<llama_hypura_vram *> all;
};
static vram_registry & registry = *new vram_registry;

// ggml asks for memory of a device that is full
static bool make_room(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    if (is_making_cache || !dev || ggml_backend_buft_is_host(buft)) {
        return false;
    }
    std::unique_lock<std::mutex> lock(registry.mutex, std::defer_lock);
    if (n_turns == 0) {
        lock.lock();
    } else if (!lock.try_lock()) {
        return false; // held by one that waits, maybe for this context
    }
    // one that computes nothing gives way at once
    const auto ask = [&](bool may_wait) {
        return std::any_of(registry.all.begin(), registry.all.end(),
                [&](llama_hypura_vram * vram) { return vram->give_way_to(dev, size, may_wait); });
    };
    return ask(false) || (n_turns == 0 && ask(true));
}

static size_t expert_bytes(const llama_model & model, ggml_backend_dev_t dev) {
    size_t res = 0;
    for (size_t il = 0; il < model.layers.size(); ++il) {
        const llama_layer & layer = model.layers[il];
        for (const ggml_tensor * t :
                { layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_gate_up_exps, layer.ffn_down_exps }) {
            const bool is_here = t && t->buffer && ggml_backend_buffer_is_host(t->buffer);
            res += is_here && model.dev_layer(il) == dev ? ggml_nbytes(t) : 0;
        }
    }
    return res;
}

llama_hypura_vram::llama_hypura_vram(const llama_model & model, const backend_list & backends,
        const std::vector<ggml_backend_buffer_type_t> & bufts, std::unique_ptr<llama_moe_cache> & cache,
        const ggml_tensor * streamed)
    : model(model), cache(cache), streamed(streamed) {
    for (size_t i = 0; i < backends.size(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_get_device(backends[i]);
        if (llama_hypura_is_remote(dev)) {
            continue;
        }
        this->backends.push_back(backends[i]);
        this->bufts.push_back(bufts[i]);
        const auto is_dev = [&](const llama_device & d) { return d.dev == dev; };
        const auto found = std::find_if(model.devices.begin(), model.devices.end(), is_dev);
        bool has_layers = false;
        for (size_t il = 0; il < model.layers.size(); ++il) {
            has_layers = has_layers || model.dev_layer(il) == dev;
        }
        if (found != model.devices.end() && has_layers) {
            const float * split = model.tensor_split();
            devices.push_back({ backends[i], dev, bufts[i], split ? split[found - model.devices.begin()] : 0.0f,
                    expert_bytes(model, dev) });
        }
    }
    std::lock_guard<std::mutex> lock(registry.mutex);
    registry.all.push_back(this);
    ggml_backend_set_make_room(make_room);
}

llama_hypura_vram::~llama_hypura_vram() {
    std::lock_guard<std::mutex> lock(registry.mutex);
    registry.all.erase(std::find(registry.all.begin(), registry.all.end(), this));
    if (registry.all.empty()) {
        ggml_backend_set_make_room(nullptr);
    }
}

// What the caches of all devices may take together, and the share of each. The cache divides it as llama.cpp divides
// layers, so the device with the least room for its part decides.
size_t llama_hypura_vram::size_of_new(std::vector<double> & shares) const {
    const float * split = model.tensor_split();
    const bool by_free =
            !split || std::all_of(split, split + model.n_devices(), [](float part) { return part == 0.0f; });
    shares.clear();
    std::vector<double> rooms;
    double sum = 0;
    for (const vram_device & d : devices) {
        size_t free = 0;
        size_t total = 0;
        ggml_backend_dev_memory(d.dev, &free, &total);
        rooms.push_back((double) llama_hypura_get_loader()->vram_budget(streamed, free, total));
        shares.push_back(by_free ? (double) free : (double) d.split);
        sum += shares.back();
    }
    double size = 0;
    for (size_t i = 0; i < devices.size(); ++i) {
        const double fits = shares[i] > 0 ? rooms[i] * sum / shares[i] : 0;
        size = i == 0 ? fits : std::min(size, fits);
    }
    for (double & share : shares) {
        share = sum > 0 ? share / sum : 0;
    }
    return (size_t) size;
}

// As llama.cpp with ggml 0.28 has it, and as 0.26 has: whether no memory is taken is told to the cache, or found out by
// it.
template <typename Cache>
static std::unique_ptr<Cache> new_cache(const llama_model & model, const backend_list & backends,
        const std::vector<ggml_backend_buffer_type_t> & bufts, size_t size) {
    if constexpr (std::is_constructible_v<Cache, const llama_model &, bool, const backend_list &,
                          const std::vector<ggml_backend_buffer_type_t> &, size_t>) {
        return std::make_unique<Cache>(model, false, backends, bufts, size);
    } else {
        return std::make_unique<Cache>(model, backends, bufts, size);
    }
}

// Whether a model only serves to measure what it would take.
template <typename Model> static auto is_measured(const Model & model, int) -> decltype(model.no_alloc()) {
    return model.no_alloc();
}
template <typename Model> static auto is_measured(const Model & model, long) -> decltype(model.hparams.no_alloc) {
    return model.hparams.no_alloc;
}

void llama_hypura_vram::make() {
    // kernels of some GPUs give other bits for more tokens, depending on where an expert lies
    constexpr int64_t MAX_BATCH = 8;
    constexpr int MAX_TRIES = 6;

    std::vector<double> shares;
    size_t size = size_of_new(shares);
    const size_t first_size = size;
    is_making_cache = true;
    for (int i = 0; i < MAX_TRIES && size > 0 && !cache; ++i, size /= 2) {
        try {
            auto made = new_cache<llama_moe_cache>(model, backends, bufts, size);
            made->hypura().max_batch = MAX_BATCH;
            auto memory = made->memory_breakdown();
            std::lock_guard<std::mutex> lock(mutex);
            for (size_t id = 0; id < devices.size(); ++id) {
                devices[id].held = memory[devices[id].buft];
                devices[id].asked = shares[id] * size;
            }
            if (held() == 0) {
                break; // no layer's experts are in host memory
            }
            cache = std::move(made);
            is_replaced = true;
        } catch (const std::exception & error) {
            // others may have taken the memory in the meantime
            LLAMA_LOG_INFO("%s: no cache of %.1f MiB: %s\n", __func__, mebibytes(size), error.what());
        }
    }
    is_making_cache = false;
    // where nothing fits, as much is not tried again
    std::lock_guard<std::mutex> lock(mutex);
    for (size_t id = 0; id < devices.size() && !cache; ++id) {
        devices[id].held = 0;
        devices[id].asked = shares[id] * first_size;
    }
}

size_t llama_hypura_vram::held() const {
    size_t res = 0;
    for (const vram_device & d : devices) {
        res += d.held;
    }
    return res;
}

// with the mutex
void llama_hypura_vram::drop() {
    is_replaced = is_replaced || cache;
    cache.reset();
    for (vram_device & d : devices) {
        d.held = 0;
        d.asked = 0;
    }
    n_roomy = 0;
    is_asked = false;
    changed.notify_all();
}

void llama_hypura_vram::replace(const char * why) {
    const size_t before = held();
    if (cache) {
        cache->hypura().rescue();
    }
    {
        std::lock_guard<std::mutex> lock(mutex);
        drop();
    }
    make();
    if (before > 0 || cache) {
        LLAMA_LOG_WARN("hypura: %.1f MiB of VRAM hold experts now, %.1f MiB before: %s\n", mebibytes(held()),
                mebibytes(before), why);
    }
}

llama_hypura_vram::room llama_hypura_vram::look() const {
    bool has_more = false;
    bool is_limited = false;
    for (const vram_device & d : devices) {
        size_t free = 0;
        size_t total = 0;
        ggml_backend_dev_memory(d.dev, &free, &total);
        if (d.held + free > total) {
            return room::ENOUGH; // some drivers do not tell what is free
        }
        const size_t budget = llama_hypura_get_loader()->vram_budget_now(streamed, d.held, free, total);
        if (budget < d.held) {
            return room::SHORT;
        }
        const bool wants = !d.is_full() && budget > d.held && budget / 9 * 8 > d.asked;
        has_more = has_more || wants;
        is_limited = is_limited || (!wants && !d.is_full());
    }
    return has_more && !is_limited ? room::MUCH : room::ENOUGH;
}

void llama_hypura_vram::fit() {
    const auto now = steady_clock::now();
    if (is_new) {
        is_new = false;
        looked_at = now;
        // Others may have given memory up for this very context. It gets more as they do: in its turn, while it
        // computes.
        std::unique_lock<std::mutex> lock(registry.mutex, std::try_to_lock);
        const bool is_alone = lock && registry.all.size() == 1;
        if (lock) {
            lock.unlock();
        }
        if (is_alone) {
            make();
        }
        return;
    }
    if (now - looked_at < INTERVAL) {
        return;
    }
    looked_at = now;
    const room room = look();
    n_roomy = room == room::MUCH ? n_roomy + 1 : 0;
    if (room == room::SHORT) {
        replace("others have taken memory of the device");
    } else if (n_roomy >= patience) {
        patience = std::min(2 * patience, MOST_PATIENCE);
        replace("more of the device's memory is free");
    }
}

bool llama_hypura_vram::begin_turn() {
    n_turns++;
    std::unique_lock<std::mutex> lock(mutex);
    is_busy = true;
    const bool must_drop = is_asked && cache;
    lock.unlock();
    if (must_drop) {
        cache->hypura().rescue();
        lock.lock();
        drop();
        lock.unlock();
    }
    fit();
    lock.lock();
    return std::exchange(is_replaced, false);
}

void llama_hypura_vram::end_turn() {
    if (cache) {
        synchronize(); // who takes the cache away need not know what uses it
    }
    n_turns--;
    std::lock_guard<std::mutex> lock(mutex);
    is_busy = false;
    changed.notify_all();
}

void llama_hypura_vram::synchronize() const {
    for (const vram_device & d : devices) {
        ggml_backend_synchronize(d.backend);
    }
}

bool llama_hypura_vram::give_way() {
    if (!cache) {
        return false;
    }
    cache->hypura().rescue();
    synchronize();
    LLAMA_LOG_WARN(
            "hypura: %.1f MiB of VRAM no longer hold experts: the context itself wants memory\n", mebibytes(held()));
    std::lock_guard<std::mutex> lock(mutex);
    drop();
    return true;
}

bool llama_hypura_vram::give_way_to(ggml_backend_dev_t dev, size_t size, bool may_wait) {
    std::unique_lock<std::mutex> lock(mutex);
    if (std::none_of(
                devices.begin(), devices.end(), [&](const vram_device & d) { return d.dev == dev && d.held > 0; })) {
        return false;
    }
    const size_t before = held();
    if (is_busy) {
        if (!may_wait) {
            return false;
        }
        is_asked = true;
        changed.wait_for(lock, LONGEST_WAIT, [&] { return !is_busy || !is_asked; });
    }
    if (!is_busy) {
        drop();
    }
    is_asked = false;
    if (held() > 0) {
        return false;
    }
    LLAMA_LOG_WARN("hypura: %.1f MiB of VRAM no longer hold experts: %.1f MiB of %s are wanted\n", mebibytes(before),
            mebibytes(size), ggml_backend_dev_name(dev));
    return true;
}

std::shared_ptr<llama_hypura_vram> llama_hypura_new_vram(const llama_model & model, const backend_list & backends,
        const std::vector<ggml_backend_buffer_type_t> & bufts, std::unique_ptr<llama_moe_cache> & cache) {
    const ggml_tensor * streamed = llama_hypura_find_streamed(model);
    if (!streamed || is_measured(model, 0) || model.hparams.n_expert == 0
            || model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return nullptr;
    }
    if (llama_hypura_get_loader()->vram_budget(streamed, SIZE_MAX, 0) == 0) {
        return nullptr; // whatever is free
    }
    auto vram = std::make_shared<llama_hypura_vram>(model, backends, bufts, cache, streamed);
    return vram->devices.empty() ? nullptr : vram;
}

llama_hypura_turn::llama_hypura_turn(llama_hypura_vram * vram, bool & is_replaced) : vram(vram) {
    try {
        if (vram && vram->begin_turn()) {
            is_replaced = true;
        }
    } catch (...) {
        vram->end_turn();
        throw;
    }
}

llama_hypura_turn::~llama_hypura_turn() {
    if (vram) {
        vram->end_turn();
    }
}

bool llama_hypura_give_way(llama_hypura_vram * vram) { return vram && vram->give_way(); }

std::unique_lock<std::mutex> llama_hypura_lock_cache(llama_hypura_vram * vram) {
    return vram ? std::unique_lock<std::mutex>(vram->mutex) : std::unique_lock<std::mutex>();
}
