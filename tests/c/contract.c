/* A host that breaks each rule of the header that a host can break, and expects to be told. In between it plans a model under
 * the smallest budget, fetches every expert of every streamed tensor and compares the bytes with the file.
 *
 *     contract FILE...      all files of a mixture of experts, in order
 */

#include "hypura.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char error[512];

#define EXPECT(condition)                                                                              \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            fprintf(stderr, "line %d: %s (last error: %s)\n", __LINE__, #condition, error);            \
            exit(1);                                                                                   \
        }                                                                                              \
    } while (0)

static void expect_error(int line, int32_t status, int32_t expected, const char *words) {
    if (status != expected || strstr(error, words) == NULL) {
        fprintf(stderr, "line %d: status %d instead of %d, or no '%s' in: %s\n", line, (int)status, (int)expected, words,
                error);
        exit(1);
    }
    error[0] = '\0';
}

#define EXPECT_ERROR(call, expected, words) expect_error(__LINE__, (call), (expected), (words))

static hypura_model_t *open_model(char **paths, size_t path_count, const char *ram) {
    const char *settings[4] = { "HYPURA=stream", "HYPURA_VERIFY=1", ram, NULL };
    hypura_model_t *model = NULL;
    EXPECT(hypura_model_open((const char *const *)paths, path_count, settings, &model, error, sizeof error) ==
           HYPURA_STATUS_OK);
    EXPECT(model != NULL);
    return model;
}

static void check_null_arguments(char **paths, size_t path_count) {
    const char *const *files = (const char *const *)paths;
    const char *no_name[1] = { NULL };
    const char *missing[1] = { "missing.gguf" };
    const char *malformed[2] = { "HYPURA_RAM", NULL };
    const char *unknown[2] = { "HYPURA_RAMM=1G", NULL };
    const char *none[1] = { NULL };
    hypura_model_t *model = NULL;
    hypura_tensor_info info;
    hypura_fetch_t *fetch = NULL;
    hypura_block block;
    size_t number = 77;
    uint8_t byte = 77;

    EXPECT_ERROR(hypura_model_open(NULL, 1, none, &model, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "NULL");
    EXPECT_ERROR(hypura_model_open(files, 0, none, &model, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "0");
    EXPECT_ERROR(hypura_model_open(no_name, 1, none, &model, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "NULL");
    EXPECT_ERROR(hypura_model_open(files, path_count, none, NULL, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "out");
    EXPECT_ERROR(hypura_model_open(missing, 1, none, &model, error, sizeof error), HYPURA_STATUS_OPEN, "missing.gguf");
    EXPECT_ERROR(hypura_model_open(files, path_count, malformed, &model, error, sizeof error), HYPURA_STATUS_CONFIG,
                 "HYPURA_RAM");
    EXPECT_ERROR(hypura_model_open(files, path_count, unknown, &model, error, sizeof error), HYPURA_STATUS_CONFIG,
                 "HYPURA_RAMM");
    EXPECT(model == NULL);

    /* The text is optional, and cut to fit. */
    EXPECT(hypura_model_open(missing, 1, none, &model, NULL, 0) == HYPURA_STATUS_OPEN);
    memset(error, 'x', sizeof error);
    EXPECT(hypura_model_open(missing, 1, none, &model, error, 8) == HYPURA_STATUS_OPEN);
    EXPECT(strlen(error) == 7 && error[8] == 'x');
    error[0] = '\0';

    EXPECT(hypura_model_tensor_count(NULL) == 0);
    EXPECT(!hypura_model_streams(NULL, 0));
    info.size = sizeof info;
    EXPECT_ERROR(hypura_model_tensor_info(NULL, 0, &info, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "model");
    EXPECT_ERROR(hypura_model_find_tensor(NULL, "x", &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "model");
    EXPECT_ERROR(hypura_model_plan(NULL, NULL, 0, NULL, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "model");
    EXPECT_ERROR(hypura_model_bind(NULL, 0, 0, 0, 0, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "model");
    EXPECT_ERROR(hypura_model_read(NULL, 0, 0, 1, &byte, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "model");
    EXPECT_ERROR(hypura_model_stats_json(NULL, NULL, 0, &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "model");
    EXPECT_ERROR(hypura_model_plan_json(NULL, NULL, 0, &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "model");
    EXPECT_ERROR(hypura_fetch_new(NULL, &fetch, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "model");
    EXPECT_ERROR(hypura_fetch_begin(NULL, 0, NULL, 0, 1, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "fetch");
    EXPECT_ERROR(hypura_fetch_next(NULL, &block, 1, &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "fetch");
    EXPECT_ERROR(hypura_fetch_early(NULL, 0, &block, 1, &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "fetch");
    EXPECT(hypura_fetch_is_ready(NULL));
    EXPECT_ERROR(hypura_setting_from_environment(NULL, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "setting");
    EXPECT(!hypura_model_next_unmeasured(NULL, 1, 0, NULL));
    hypura_model_set_speed(NULL, 0, 1, 1e9);
    hypura_model_set_remote_speed(NULL, 1e9, 1e-3);
    hypura_model_free(NULL);
    hypura_fetch_end(NULL);
    hypura_fetch_free(NULL);
    EXPECT(fetch == NULL && number == 77 && byte == 77);
}

/* hypura_plan as the first hosts of this ABI know it. */
typedef struct plan_v1 {
    size_t size;
    int32_t mode;
    uint64_t streamed_tensor_count;
    uint64_t streamed_bytes;
    uint64_t minimum_bytes;
} plan_v1;

/* A host gets the fields that it was compiled with, be it older or newer than the library, and nothing beside them changes. */
static void check_growing_structs(char **paths, size_t path_count) {
    struct { hypura_plan plan; uint64_t unknown; uint64_t beyond; } newer;
    struct { plan_v1 plan; uint64_t beyond; } older;
    struct { hypura_tensor_info info; uint64_t unknown; uint64_t beyond; } described;
    hypura_tensor_info info;
    hypura_plan plan;
    hypura_model_t *model = open_model(paths, path_count, NULL);

    plan.size = sizeof plan;
    EXPECT(hypura_model_plan(model, NULL, 0, &plan, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(plan.size == sizeof plan && plan.minimum_bytes > 0 && plan.maximum_bytes >= plan.streamed_bytes);
    hypura_model_free(model);

    model = open_model(paths, path_count, NULL);
    memset(&older, 0x55, sizeof older);
    older.plan.size = sizeof older.plan;
    EXPECT(hypura_model_plan(model, NULL, 0, (hypura_plan *)(void *)&older, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(older.plan.size == sizeof older.plan && older.plan.mode == plan.mode);
    EXPECT(older.plan.streamed_bytes == plan.streamed_bytes && older.plan.minimum_bytes == plan.minimum_bytes);
    EXPECT(older.beyond == UINT64_C(0x5555555555555555));
    hypura_model_free(model);

    model = open_model(paths, path_count, NULL);
    memset(&newer, 0x55, sizeof newer);
    newer.plan.size = sizeof newer.plan + sizeof newer.unknown;
    EXPECT(hypura_model_plan(model, NULL, 0, &newer.plan, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(newer.plan.size == sizeof newer.plan + sizeof newer.unknown);
    EXPECT(newer.plan.maximum_bytes == plan.maximum_bytes && newer.unknown == 0);
    EXPECT(newer.beyond == UINT64_C(0x5555555555555555));

    info.size = sizeof info;
    EXPECT(hypura_model_tensor_info(model, 0, &info, error, sizeof error) == HYPURA_STATUS_OK);
    memset(&described, 0x55, sizeof described);
    described.info.size = sizeof described.info + sizeof described.unknown;
    EXPECT(hypura_model_tensor_info(model, 0, &described.info, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(described.info.name == info.name && described.info.size_bytes == info.size_bytes);
    EXPECT(described.info.expert_count == info.expert_count && described.unknown == 0);
    EXPECT(described.beyond == UINT64_C(0x5555555555555555));
    hypura_model_free(model);
}

/* What needs a model, planned or not. */
static void check_order_and_sizes(char **paths, size_t path_count) {
    hypura_model_t *model = open_model(paths, path_count, NULL);
    size_t count = hypura_model_tensor_count(model);
    size_t number = 77;
    hypura_tensor_info info;
    hypura_plan plan;
    hypura_fetch_t *fetch = NULL;
    uint8_t byte = 77;
    uint8_t *on_host = (uint8_t *)calloc(count, 1);
    char text[64];

    EXPECT(count > 0 && on_host != NULL);
    EXPECT_ERROR(hypura_fetch_new(model, &fetch, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "not streamed");
    EXPECT_ERROR(hypura_model_stats_json(model, NULL, 0, &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "not streamed");
    EXPECT_ERROR(hypura_model_plan_json(model, NULL, 0, &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "not streamed");

    info.size = sizeof info - 8;
    snprintf(text, sizeof text, "%zu bytes in the host and at least %zu", sizeof info - 8, sizeof info);
    EXPECT_ERROR(hypura_model_tensor_info(model, 0, &info, error, sizeof error), HYPURA_STATUS_VERSION, text);
    plan.size = sizeof(plan_v1) - 8;
    snprintf(text, sizeof text, "%zu bytes in the host and at least %zu", sizeof(plan_v1) - 8, sizeof(plan_v1));
    EXPECT_ERROR(hypura_model_plan(model, NULL, 0, &plan, error, sizeof error), HYPURA_STATUS_VERSION, text);
    plan.size = (size_t)-1;
    EXPECT_ERROR(hypura_model_plan(model, NULL, 0, &plan, error, sizeof error), HYPURA_STATUS_VERSION, "sizeof");

    info.size = sizeof info;
    EXPECT_ERROR(hypura_model_tensor_info(model, count, &info, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "there is no tensor");
    EXPECT_ERROR(hypura_model_tensor_info(model, 0, NULL, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "info");
    EXPECT_ERROR(hypura_model_find_tensor(model, NULL, &number, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "name");
    EXPECT_ERROR(hypura_model_find_tensor(model, "blk.0.nothing", &number, error, sizeof error),
                 HYPURA_STATUS_INVALID_ARGUMENT, "blk.0.nothing");
    EXPECT_ERROR(hypura_model_find_tensor(model, "output.weight", NULL, error, sizeof error),
                 HYPURA_STATUS_INVALID_ARGUMENT, "");
    EXPECT_ERROR(hypura_model_plan(model, on_host, count + 1, NULL, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 "tensor_count");
    EXPECT(number == 77);

    EXPECT(hypura_model_tensor_info(model, 0, &info, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT_ERROR(hypura_model_read(model, 0, info.size_bytes, 1, &byte, error, sizeof error),
                 HYPURA_STATUS_INVALID_ARGUMENT, info.name);
    EXPECT_ERROR(hypura_model_read(model, 0, UINT64_MAX, 2, &byte, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT,
                 info.name);
    EXPECT_ERROR(hypura_model_read(model, 0, 0, 1, NULL, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "NULL");
    EXPECT(byte == 77);

    /* Everything is on a device: nothing is ours. */
    plan.size = sizeof plan;
    EXPECT(hypura_model_plan(model, on_host, count, &plan, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(plan.mode == HYPURA_MODE_FULL_RESIDENT && plan.streamed_tensor_count == 0 && plan.minimum_bytes == 0);
    EXPECT_ERROR(hypura_fetch_new(model, &fetch, error, sizeof error), HYPURA_STATUS_INVALID_ARGUMENT, "not streamed");
    EXPECT(fetch == NULL);
    free(on_host);
    hypura_model_free(model);
}

/* The budget that the refusal of an impossible one names, as a setting. */
static void working_budget(char **paths, size_t path_count, char *setting, size_t setting_size) {
    hypura_model_t *model = open_model(paths, path_count, NULL);
    hypura_plan plan;
    const char *advice;
    unsigned long kibibytes = 0;

    plan.size = sizeof plan;
    EXPECT(hypura_model_plan(model, NULL, 0, &plan, error, sizeof error) == HYPURA_STATUS_OK);
    hypura_model_free(model);
    EXPECT(plan.mode == HYPURA_MODE_EXPERT_STREAMING && plan.streamed_bytes > plan.minimum_bytes);

    model = open_model(paths, path_count, "HYPURA_RAM=16K");
    plan.mode = 77;
    EXPECT(hypura_model_plan(model, NULL, 0, &plan, error, sizeof error) == HYPURA_STATUS_BUDGET);
    EXPECT(plan.mode == 77);
    advice = strstr(error, "HYPURA_RAM=");
    EXPECT(advice != NULL && sscanf(advice, "HYPURA_RAM=%luK", &kibibytes) == 1);
    EXPECT(kibibytes == (plan.minimum_bytes + 1023) / 1024);
    snprintf(setting, setting_size, "HYPURA_RAM=%luK", kibibytes);
    hypura_model_free(model);
}

static uint8_t *read_range(const char *path, uint64_t offset, size_t size_bytes) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = (uint8_t *)malloc(size_bytes);

    EXPECT(file != NULL && bytes != NULL);
    EXPECT(fseek(file, (long)offset, SEEK_SET) == 0);
    EXPECT(fread(bytes, 1, size_bytes, file) == size_bytes);
    fclose(file);
    return bytes;
}

/* Fetches all experts of a tensor in one demand, every one named twice, and compares them with the file. */
static void check_tensor(const hypura_model_t *model, hypura_fetch_t *fetch, size_t tensor, const uint8_t *expected) {
    hypura_tensor_info info;
    hypura_block blocks[3];
    size_t delivered = 0;
    size_t count = 0;
    size_t expert_bytes;
    size_t i;
    int32_t *ids;
    char *seen;

    info.size = sizeof info;
    EXPECT(hypura_model_tensor_info(model, tensor, &info, error, sizeof error) == HYPURA_STATUS_OK);
    expert_bytes = (size_t)(info.size_bytes / info.expert_count);
    ids = (int32_t *)malloc(2 * info.expert_count * sizeof *ids);
    seen = (char *)calloc(info.expert_count, 1);
    EXPECT(ids != NULL && seen != NULL);
    for (i = 0; i < 2 * info.expert_count; i++) {
        ids[i] = (int32_t)(i % info.expert_count);
    }
    EXPECT(hypura_fetch_begin(fetch, tensor, ids, 2 * info.expert_count, 2, error, sizeof error) == HYPURA_STATUS_OK);
    do {
        EXPECT(hypura_fetch_next(fetch, blocks, 3, &count, error, sizeof error) == HYPURA_STATUS_OK);
        EXPECT(count <= 3);
        for (i = 0; i < count; i++) {
            EXPECT(blocks[i].expert < info.expert_count);
            EXPECT(!seen[blocks[i].expert]);
            seen[blocks[i].expert] = 1;
            EXPECT(memcmp(blocks[i].data, expected + blocks[i].expert * expert_bytes, expert_bytes) == 0);
            delivered++;
        }
    } while (count != 0);
    EXPECT(delivered == info.expert_count);
    hypura_fetch_end(fetch);
    free(seen);
    free(ids);
}

static void check_streamed_tensors(char **paths, const hypura_model_t *model, uint64_t expected_count) {
    uint64_t streamed = 0;
    hypura_fetch_t *fetch = NULL;
    hypura_tensor_info info;
    size_t tensor;

    EXPECT(hypura_fetch_new(model, &fetch, error, sizeof error) == HYPURA_STATUS_OK);
    for (tensor = 0; tensor < hypura_model_tensor_count(model); tensor++) {
        size_t found = 0;
        uint8_t *expected;
        uint8_t last = 0;

        info.size = sizeof info;
        EXPECT(hypura_model_tensor_info(model, tensor, &info, error, sizeof error) == HYPURA_STATUS_OK);
        EXPECT(hypura_model_find_tensor(model, info.name, &found, error, sizeof error) == HYPURA_STATUS_OK);
        EXPECT(found == tensor);
        expected = read_range(paths[info.file], info.offset, (size_t)info.size_bytes);
        EXPECT(hypura_model_read(model, tensor, info.size_bytes - 1, 1, &last, error, sizeof error) == HYPURA_STATUS_OK);
        EXPECT(last == expected[info.size_bytes - 1]);
        if (hypura_model_streams(model, tensor)) {
            EXPECT(info.expert_count > 1);
            EXPECT(hypura_model_bind(model, tensor, info.file, info.offset, info.size_bytes, error, sizeof error) ==
                   HYPURA_STATUS_OK);
            EXPECT_ERROR(hypura_model_bind(model, tensor, info.file, info.offset + 32, info.size_bytes, error,
                                           sizeof error),
                         HYPURA_STATUS_FORMAT, info.name);
            check_tensor(model, fetch, tensor, expected);
            streamed++;
        } else {
            EXPECT_ERROR(hypura_model_bind(model, tensor, info.file, info.offset, info.size_bytes, error, sizeof error),
                         HYPURA_STATUS_INVALID_ARGUMENT, info.name);
            EXPECT_ERROR(hypura_fetch_begin(fetch, tensor, NULL, 0, 1, error, sizeof error),
                         HYPURA_STATUS_INVALID_ARGUMENT, "");
        }
        free(expected);
    }
    EXPECT(streamed == expected_count);
    hypura_fetch_free(fetch);
}

static void check_stats(const hypura_model_t *model) {
    size_t needed = 0;
    char small[12];
    char *text;

    EXPECT(hypura_model_stats_json(model, NULL, 0, &needed, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(needed > sizeof small);
    memset(small, 'x', sizeof small);
    EXPECT(hypura_model_stats_json(model, small, sizeof small - 1, NULL, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(strlen(small) == sizeof small - 2 && small[sizeof small - 1] == 'x');
    text = (char *)malloc(needed);
    EXPECT(text != NULL);
    EXPECT(hypura_model_stats_json(model, text, needed, &needed, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(strlen(text) + 1 == needed && strstr(text, "\"errors\":0") != NULL);
    free(text);
    EXPECT(hypura_model_plan_json(model, NULL, 0, &needed, error, sizeof error) == HYPURA_STATUS_OK);
    text = (char *)malloc(needed);
    EXPECT(text != NULL);
    EXPECT(hypura_model_plan_json(model, text, needed, NULL, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(strlen(text) + 1 == needed && strstr(text, "\"tokens_per_second\":") != NULL);
    free(text);
}

static int log_lines;

static void count_lines(int32_t level, const char *message, void *user_data) {
    if (level <= HYPURA_LOG_LEVEL_INFO && message[0] != '\0' && strchr(message, '\n') == NULL) {
        ++*(int *)user_data;
    }
}

int main(int argc, char **argv) {
    char **paths = argv + 1;
    size_t path_count = (size_t)(argc - 1);
    char ram[64];
    hypura_model_t *model;
    hypura_plan plan;
    int32_t setting = 77;
    hypura_fetch_t *fetch = NULL;

    if (argc < 2) {
        fprintf(stderr, "usage: contract FILE...\n");
        return 2;
    }
    EXPECT(hypura_abi_version() == HYPURA_ABI_VERSION);
    snprintf(ram, sizeof ram, "%d.%d.%d", HYPURA_VERSION_MAJOR, HYPURA_VERSION_MINOR, HYPURA_VERSION_PATCH);
    EXPECT(strcmp(hypura_version(), ram) == 0);
    EXPECT(strcmp(hypura_status_name(HYPURA_STATUS_BUDGET), "HYPURA_STATUS_BUDGET") == 0);
    EXPECT(strcmp(hypura_status_name(-1), "HYPURA_STATUS_UNKNOWN") == 0);
    EXPECT(hypura_setting_from_environment(&setting, error, sizeof error) == HYPURA_STATUS_OK);
    EXPECT(setting == HYPURA_SETTING_AUTO);
    hypura_log_set(count_lines, &log_lines);

    check_null_arguments(paths, path_count);
    check_order_and_sizes(paths, path_count);
    check_growing_structs(paths, path_count);
    working_budget(paths, path_count, ram, sizeof ram);

    model = open_model(paths, path_count, ram);
    plan.size = sizeof plan;
    EXPECT(hypura_model_plan(model, NULL, 0, &plan, error, sizeof error) == HYPURA_STATUS_OK);
    check_streamed_tensors(paths, model, plan.streamed_tensor_count);
    check_stats(model);

    /* Fetches outlive their model. */
    EXPECT(hypura_fetch_new(model, &fetch, error, sizeof error) == HYPURA_STATUS_OK);
    hypura_model_free(model);
    hypura_fetch_end(fetch);
    hypura_fetch_free(fetch);

    EXPECT(log_lines > 0);
    hypura_log_set(NULL, NULL);
    return 0;
}
