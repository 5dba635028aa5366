/* The header needs nothing before it, and bears being included twice. */
#include "hypura.h"
#include "hypura.h"

/* An enumeration's name is an int32_t in C and the enumeration in C++: both are as wide as what functions take. */
struct widths {
    char status[sizeof(hypura_status) == sizeof(int32_t) ? 1 : -1];
    char level[sizeof(hypura_log_level) == sizeof(int32_t) ? 1 : -1];
};

size_t use_of_every_type(void);

size_t use_of_every_type(void) {
    hypura_log_callback callback = NULL;
    return sizeof(hypura_tensor_info) + sizeof(hypura_plan) + sizeof(hypura_block) + sizeof(struct widths) +
           (callback == NULL ? HYPURA_ABI_VERSION : 0);
}
