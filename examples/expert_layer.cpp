// Computes one layer of experts on a few made-up inputs: the weights are streamed, the arithmetic is this program's
// own.
//
//     expert_layer MODEL LAYER EXPERTS_USED [RAM]        RAM: memory for streamed weights, such as 64M; without it 256M
//
// Prints the outputs, one line for each input. Component i of input t is sin((t + 1) (i + 1)). The layer is that of
// Mixtral and its kin: a softmax over the router's logits, of which the largest EXPERTS_USED are scaled to a sum of 1,
// weighs experts that compute down(silu(gate(x)) * up(x)).

#include <hypura.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr size_t input_count = 4;

using Vector = std::vector<float>;

// What failed, as the library says it.
class Error {
public:
    operator char *() { return text.data(); }
    size_t size() const { return text.size(); }

    void check(int32_t status) const {
        if (status != HYPURA_STATUS_OK) {
            throw std::runtime_error(text.data());
        }
    }

private:
    std::array<char, 512> text {};
};

struct Free {
    void operator()(hypura_model_t * model) const { hypura_model_free(model); }
    void operator()(hypura_fetch_t * fetch) const { hypura_fetch_free(fetch); }
};

using Model = std::unique_ptr<hypura_model_t, Free>;
using Fetch = std::unique_ptr<hypura_fetch_t, Free>;

Model open_model(const char * path, const std::string & ram) {
    const std::string memory = "HYPURA_RAM=" + ram;
    const char * settings[] = { "HYPURA=stream", memory.c_str(), nullptr };
    Error error;
    hypura_model_t * opened = nullptr;
    error.check(hypura_model_open(&path, 1, settings, &opened, error, error.size()));
    Model model(opened);
    error.check(hypura_model_plan(opened, nullptr, 0, nullptr, error, error.size()));
    return model;
}

Fetch new_fetch(const Model & model) {
    Error error;
    hypura_fetch_t * made = nullptr;
    error.check(hypura_fetch_new(model.get(), &made, error, error.size()));
    return Fetch(made);
}

float from_half(const uint8_t * bytes) {
    const int bits = bytes[0] | bytes[1] << 8;
    const int exponent = bits >> 10 & 31;
    const int fraction = bits & 1023;
    const float magnitude =
            exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(float(1024 + fraction), exponent - 25);
    return bits >> 15 != 0 ? -magnitude : magnitude;
}

// How a ggml type stores so many values of a row in so many bytes.
struct Format {
    uint32_t ggml_type;
    size_t values;
    size_t bytes;
    void (*decode)(const uint8_t * bytes, float * values);
};

constexpr Format formats[] = {
    { 0, 1, 4, [](const uint8_t * bytes, float * values) { std::memcpy(values, bytes, 4); } },
    // Q4_1: scale, minimum, then 4 bits a value; a byte has value i and value i + 16.
    { 3, 32, 20,
            [](const uint8_t * bytes, float * values) {
                const float scale = from_half(bytes);
                const float minimum = from_half(bytes + 2);
                for (int i = 0; i < 16; i++) {
                    values[i] = float(bytes[4 + i] & 15) * scale + minimum;
                    values[i + 16] = float(bytes[4 + i] >> 4) * scale + minimum;
                }
            } },
    // Q8_0: scale, then 8 bits a value.
    { 8, 32, 34,
            [](const uint8_t * bytes, float * values) {
                const float scale = from_half(bytes);
                for (int i = 0; i < 32; i++) {
                    values[i] = float(int8_t(bytes[2 + i])) * scale;
                }
            } },
};

// Matrices of one layer: a tensor of the model, with one matrix for each expert or just one.
struct Matrices {
    size_t tensor;
    hypura_tensor_info info {};
    const Format * format;

    Matrices(const Model & model, const std::string & name) {
        Error error;
        info.size = sizeof info;
        error.check(hypura_model_find_tensor(model.get(), name.c_str(), &tensor, error, error.size()));
        error.check(hypura_model_tensor_info(model.get(), tensor, &info, error, error.size()));
        format = std::find_if(
                std::begin(formats), std::end(formats), [&](auto & f) { return f.ggml_type == info.ggml_type; });
        if (format == std::end(formats)) {
            throw std::runtime_error(name + " is of ggml type " + std::to_string(info.ggml_type)
                    + ", which this program cannot multiply with");
        }
    }

    size_t columns() const { return info.shape[0]; }
    size_t rows() const { return info.shape[1]; }

    Vector multiply(const void * matrix, const Vector & x) const {
        const uint8_t * bytes = static_cast<const uint8_t *>(matrix);
        std::array<float, 32> values;
        Vector product(rows());
        for (float & sum : product) {
            for (size_t column = 0; column < columns(); column += format->values, bytes += format->bytes) {
                format->decode(bytes, values.data());
                sum += std::inner_product(values.begin(), values.begin() + format->values, x.begin() + column, 0.0f);
            }
        }
        return product;
    }
};

// The experts that an input is sent to, and their weights.
struct Route {
    std::vector<int32_t> experts;
    Vector weights;
};

// `logits` are changed.
Route choose(Vector & logits, size_t used) {
    Route route;
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + used, order.end(),
            [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    route.experts.assign(order.begin(), order.begin() + used);
    float sum = 0;
    for (int32_t expert : route.experts) {
        route.weights.push_back(std::exp(logits[expert] - logits[order[0]]));
        sum += route.weights.back();
    }
    for (float & weight : route.weights) {
        weight /= sum;
    }
    return route;
}

// What a router or a norm needs stays in memory in a host that computes more than one layer.
std::vector<Route> route_inputs(
        const Model & model, const Matrices & router, const std::vector<Vector> & inputs, size_t used) {
    std::vector<uint8_t> bytes(router.info.size_bytes);
    std::vector<Route> routes;
    Error error;
    error.check(hypura_model_read(model.get(), router.tensor, 0, bytes.size(), bytes.data(), error, error.size()));
    for (const Vector & input : inputs) {
        Vector logits = router.multiply(bytes.data(), input);
        routes.push_back(choose(logits, used));
    }
    return routes;
}

// Demands the matrices of all chosen experts, and calls `use` for each input and choice of an expert that has arrived.
// Each matrix is read once, however many inputs are sent to it.
void for_each_choice(const Fetch & fetch, const Matrices & matrices, const std::vector<Route> & routes,
        const std::function<void(size_t input, size_t choice, const void * matrix)> & use) {
    std::vector<int32_t> ids;
    for (const Route & route : routes) {
        ids.insert(ids.end(), route.experts.begin(), route.experts.end());
    }
    Error error;
    error.check(hypura_fetch_begin(
            fetch.get(), matrices.tensor, ids.data(), ids.size(), routes.size(), error, error.size()));
    for (;;) {
        std::array<hypura_block, 8> blocks;
        size_t count = 0;
        error.check(hypura_fetch_next(fetch.get(), blocks.data(), blocks.size(), &count, error, error.size()));
        if (count == 0) {
            return;
        }
        for (size_t block = 0; block < count; block++) {
            for (size_t input = 0; input < routes.size(); input++) {
                const std::vector<int32_t> & experts = routes[input].experts;
                const auto found = std::find(experts.begin(), experts.end(), int32_t(blocks[block].expert));
                if (found != experts.end()) {
                    use(input, size_t(found - experts.begin()), blocks[block].data);
                }
            }
        }
    }
}

std::vector<Vector> compute_layer(const Model & model, const std::string & layer, size_t used) {
    const Matrices router(model, layer + ".ffn_gate_inp.weight");
    const Matrices gate(model, layer + ".ffn_gate_exps.weight");
    const Matrices up(model, layer + ".ffn_up_exps.weight");
    const Matrices down(model, layer + ".ffn_down_exps.weight");
    const auto shaped = [&](const Matrices & matrices, size_t columns, size_t rows) {
        return matrices.columns() == columns && matrices.rows() == rows && matrices.info.expert_count == router.rows();
    };
    if (!shaped(gate, router.columns(), down.columns()) || !shaped(up, router.columns(), down.columns())
            || !shaped(down, gate.rows(), router.columns())) {
        throw std::runtime_error(layer + ": the shapes of router, gate, up and down do not match");
    }
    if (used == 0 || used > router.rows()) {
        throw std::runtime_error("EXPERTS_USED must be 1 to " + std::to_string(router.rows()));
    }

    std::vector<Vector> inputs(input_count, Vector(router.columns()));
    for (size_t t = 0; t < input_count; t++) {
        for (size_t i = 0; i < inputs[t].size(); i++) {
            inputs[t][i] = float(std::sin(double(t + 1) * double(i + 1)));
        }
    }
    const std::vector<Route> routes = route_inputs(model, router, inputs, used);
    const Fetch fetch = new_fetch(model);

    // By input and choice.
    std::vector<std::vector<Vector>> hidden(input_count, std::vector<Vector>(used));
    for_each_choice(fetch, gate, routes, [&](size_t input, size_t choice, const void * matrix) {
        hidden[input][choice] = gate.multiply(matrix, inputs[input]);
    });
    for_each_choice(fetch, up, routes, [&](size_t input, size_t choice, const void * matrix) {
        const Vector product = up.multiply(matrix, inputs[input]);
        Vector & values = hidden[input][choice];
        std::transform(values.begin(), values.end(), product.begin(), values.begin(),
                [](float gated, float upped) { return gated / (1 + std::exp(-gated)) * upped; });
    });
    std::vector<Vector> outputs(input_count, Vector(down.rows()));
    for_each_choice(fetch, down, routes, [&](size_t input, size_t choice, const void * matrix) {
        const Vector product = down.multiply(matrix, hidden[input][choice]);
        const float weight = routes[input].weights[choice];
        std::transform(outputs[input].begin(), outputs[input].end(), product.begin(), outputs[input].begin(),
                [&](float sum, float value) { return sum + weight * value; });
    });
    return outputs;
}

} // namespace

int main(int argc, char ** argv) {
    char * end = nullptr;
    const size_t used = argc == 4 || argc == 5 ? strtoul(argv[3], &end, 10) : 0;
    if (used == 0 || *end != '\0') {
        fprintf(stderr, "usage: expert_layer MODEL LAYER EXPERTS_USED [RAM]\n");
        return 2;
    }
    try {
        const Model model = open_model(argv[1], argc > 4 ? argv[4] : "256M");
        for (const Vector & output : compute_layer(model, std::string("blk.") + argv[2], used)) {
            for (size_t i = 0; i < output.size(); i++) {
                printf("%s%.9g", i > 0 ? " " : "", double(output[i]));
            }
            printf("\n");
        }
    } catch (const std::exception & error) {
        fprintf(stderr, "expert_layer: %s\n", error.what());
        return 1;
    }
    return 0;
}
