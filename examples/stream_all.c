/* Streams every weight of a GGUF through a small budget, as fast as the drive goes, and prints a checksum of them all.
 *
 *     stream_all MODEL [RAM]        RAM: memory for streamed weights, such as 64M; without it 256M
 *
 * What the library streams is fetched. The rest, which a host that computes would keep in memory (norms, embeddings, routers), is
 * read piece by piece. Two threads take the tensors in turn: one's reads go on while the other adds up.
 *
 * The checksum does not depend on the order. A block (a tensor, or one expert of one) is taken as 64-bit little-endian words,
 * the last one filled up with zeros; word i is multiplied by 2i+1. The sum of a block is multiplied by 2(2^32 t + e) + 1,
 * where t is the tensor and e the expert. All of it is modulo 2^64, where an odd factor keeps every change visible.
 */

#include <hypura.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORKER_COUNT = 2, BLOCKS_AT_ONCE = 16, PIECE_BYTES = 1 << 20, ERROR_SIZE = 512 };

typedef struct {
    const hypura_model_t *model;
    size_t tensor_count;
    atomic_size_t next_tensor;
    atomic_bool failed;
} job;

typedef struct {
    pthread_t thread;
    job *work;
    hypura_fetch_t *fetch;
    uint8_t *piece;
    uint64_t checksum;
    uint64_t bytes;
    char error[ERROR_SIZE];
} worker;

/* The sum of words that begin as the block's word `first`. */
static uint64_t sum_words(const uint8_t *bytes, size_t count, uint64_t first) {
    uint64_t factor = 2 * first + 1;
    uint64_t sum = 0;

    while (count > 0) {
        uint64_t word = 0;
        size_t length = count < sizeof word ? count : sizeof word;
        memcpy(&word, bytes, length);
        sum += word * factor;
        factor += 2;
        bytes += length;
        count -= length;
    }
    return sum;
}

static void add_block(worker *self, size_t tensor, uint64_t expert, uint64_t sum, uint64_t bytes) {
    self->checksum += sum * (2 * ((uint64_t)tensor << 32 | expert) + 1);
    self->bytes += bytes;
}

/* A tensor that is streamed: all its experts, or the tensor itself, in the order in which they arrive. */
static int32_t fetch_tensor(worker *self, size_t tensor, const hypura_tensor_info *info) {
    size_t expert_count = (size_t)info->expert_count;
    size_t block_bytes = (size_t)(info->size_bytes / (expert_count > 0 ? expert_count : 1));
    int32_t *ids = malloc((expert_count + 1) * sizeof *ids);
    hypura_block blocks[BLOCKS_AT_ONCE];
    size_t count;
    int32_t status;

    if (ids == NULL) {
        snprintf(self->error, ERROR_SIZE, "out of memory");
        return HYPURA_STATUS_RESOURCE;
    }
    for (size_t expert = 0; expert < expert_count; expert++) {
        ids[expert] = (int32_t)expert;
    }
    status = hypura_fetch_begin(self->fetch, tensor, ids, expert_count, 1, self->error, ERROR_SIZE);
    free(ids);
    do {
        count = 0;
        if (status == HYPURA_STATUS_OK) {
            status = hypura_fetch_next(self->fetch, blocks, BLOCKS_AT_ONCE, &count, self->error, ERROR_SIZE);
        }
        for (size_t i = 0; i < count; i++) {
            add_block(self, tensor, blocks[i].expert, sum_words(blocks[i].data, block_bytes, 0), block_bytes);
        }
    } while (count > 0);
    return status;
}

/* A table that is streamed, some rows at a time: so many that their bytes are whole words. */
static int32_t fetch_table(worker *self, size_t tensor, const hypura_tensor_info *info) {
    size_t row_count = (size_t)info->shape[1], row_bytes = (size_t)(info->size_bytes / row_count);
    size_t at_once = PIECE_BYTES / row_bytes / sizeof(uint64_t) * sizeof(uint64_t);
    int32_t *ids = malloc((at_once + 1) * sizeof *ids);
    int32_t status = ids != NULL ? HYPURA_STATUS_OK : HYPURA_STATUS_RESOURCE;
    uint64_t sum = 0;

    for (size_t row = 0; status == HYPURA_STATUS_OK && row < row_count; row += at_once) {
        size_t count = row_count - row < at_once ? row_count - row : at_once;
        for (size_t i = 0; i < count; i++) {
            ids[i] = (int32_t)(row + i);
        }
        status = hypura_fetch_rows(self->fetch, tensor, ids, count, self->piece, count * row_bytes, self->error, ERROR_SIZE);
        sum += status == HYPURA_STATUS_OK ? sum_words(self->piece, count * row_bytes, row * row_bytes / sizeof(uint64_t)) : 0;
    }
    free(ids);
    add_block(self, tensor, 0, sum, info->size_bytes);
    return status;
}

/* A tensor that is not streamed, block by block, each in pieces. */
static int32_t read_tensor(worker *self, size_t tensor, const hypura_tensor_info *info) {
    uint64_t block_count = info->expert_count > 0 ? info->expert_count : 1;
    uint64_t block_bytes = info->size_bytes / block_count;

    for (uint64_t block = 0; block < block_count; block++) {
        uint64_t sum = 0;
        for (uint64_t position = 0; position < block_bytes; position += PIECE_BYTES) {
            uint64_t left = block_bytes - position;
            size_t length = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
            int32_t status = hypura_model_read(self->work->model, tensor, block * block_bytes + position, length, self->piece,
                                               self->error, ERROR_SIZE);
            if (status != HYPURA_STATUS_OK) {
                return status;
            }
            sum += sum_words(self->piece, length, position / sizeof(uint64_t));
        }
        add_block(self, tensor, block, sum, block_bytes);
    }
    return HYPURA_STATUS_OK;
}

static void *run(void *argument) {
    worker *self = argument;
    job *work = self->work;

    while (!atomic_load(&work->failed)) {
        size_t tensor = atomic_fetch_add(&work->next_tensor, 1);
        hypura_tensor_info info = { .size = sizeof info };
        int32_t status;
        if (tensor >= work->tensor_count) {
            break;
        }
        status = hypura_model_tensor_info(work->model, tensor, &info, self->error, ERROR_SIZE);
        if (status == HYPURA_STATUS_OK) {
            if (hypura_model_is_table(work->model, tensor)) {
                status = fetch_table(self, tensor, &info);
            } else if (hypura_model_streams(work->model, tensor)) {
                status = fetch_tensor(self, tensor, &info);
            } else {
                status = read_tensor(self, tensor, &info);
            }
        }
        /* A failed read fails both threads; one of them tells. */
        if (status != HYPURA_STATUS_OK && atomic_exchange(&work->failed, true)) {
            self->error[0] = '\0';
        }
    }
    /* Slots that the other thread may be waiting for. */
    hypura_fetch_end(self->fetch);
    return NULL;
}

static double seconds_now(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static bool prepare(worker *self, job *work, bool streamed) {
    self->work = work;
    self->piece = malloc(PIECE_BYTES);
    if (self->piece == NULL) {
        snprintf(self->error, ERROR_SIZE, "out of memory");
        return false;
    }
    return !streamed || hypura_fetch_new(work->model, &self->fetch, self->error, ERROR_SIZE) == HYPURA_STATUS_OK;
}

/* Runs the workers to their end. Fewer than all will do. */
static bool run_workers(worker *workers) {
    size_t started = 0;

    while (started < WORKER_COUNT && pthread_create(&workers[started].thread, NULL, run, &workers[started]) == 0) {
        started++;
    }
    if (started == 0) {
        snprintf(workers[0].error, ERROR_SIZE, "no thread can be started");
    }
    for (size_t i = 0; i < started; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    return started > 0;
}

static bool stream_all(const hypura_model_t *model, bool streamed) {
    job work = { .model = model, .tensor_count = hypura_model_tensor_count(model) };
    worker workers[WORKER_COUNT] = { 0 };
    uint64_t checksum = 0;
    uint64_t bytes = 0;
    double start = seconds_now();
    double seconds;
    bool succeeded = true;

    for (size_t i = 0; i < WORKER_COUNT && succeeded; i++) {
        succeeded = prepare(&workers[i], &work, streamed);
    }
    succeeded = succeeded && run_workers(workers) && !atomic_load(&work.failed);
    seconds = seconds_now() - start;
    for (size_t i = 0; i < WORKER_COUNT; i++) {
        checksum += workers[i].checksum;
        bytes += workers[i].bytes;
        if (workers[i].error[0] != '\0') {
            fprintf(stderr, "stream_all: %s\n", workers[i].error);
        }
        hypura_fetch_free(workers[i].fetch);
        free(workers[i].piece);
    }
    if (succeeded) {
        printf("%016" PRIx64 "  %" PRIu64 " bytes, %.2f GB/s\n", checksum, bytes, (double)bytes / seconds / 1e9);
    }
    return succeeded;
}

int main(int argc, char **argv) {
    char ram[64];
    const char *settings[] = { "HYPURA=stream", "HYPURA_TENSORS=all", ram, NULL };
    hypura_model_t *model = NULL;
    hypura_plan plan = { .size = sizeof plan };
    char error[ERROR_SIZE] = "";
    bool succeeded;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: stream_all MODEL [RAM]\n");
        return 2;
    }
    snprintf(ram, sizeof ram, "HYPURA_RAM=%s", argc > 2 ? argv[2] : "256M");
    if (hypura_model_open((const char *const *)&argv[1], 1, settings, &model, error, sizeof error) != HYPURA_STATUS_OK ||
        hypura_model_plan(model, NULL, 0, &plan, error, sizeof error) != HYPURA_STATUS_OK) {
        fprintf(stderr, "stream_all: %s\n", error);
        hypura_model_free(model);
        return 1;
    }
    succeeded = stream_all(model, plan.streamed_tensor_count > 0);
    hypura_model_free(model);
    return succeeded ? 0 : 1;
}
