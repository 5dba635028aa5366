// ggml's functions, found in whatever has loaded this backend: all of them for the backend that is built apart from
// llama.cpp, those of the registry for one that is built with it and loaded at run time. On ELF systems.
//
// Linked against nothing that has them, the backend would leave its ggml_* symbols to the dynamic loader, which finds
// them where ggml's libraries are global: in llama.cpp's own programs. A host that opens them for itself alone, as an
// addon of Node or a module of Python does, has them under names of its own. So each function is defined here as a jump
// to an address, which is asked of the library that has called ggml_backend_init, and of those that it was linked with.
// HYPURA_HOST_FUNCTIONS lists them; the build makes it.

#include "ggml-backend.h"
#include "ggml-hypura.h"

#include "hypura-host-functions.h"

#include <cstdio>
#include <dlfcn.h>

// One line of assembly is one line here.
// clang-format off
#if defined(__x86_64__)
#define HYPURA_JUMP(name) "    endbr64\n    jmp *hypura_host_" #name "(%rip)\n"
#elif defined(__aarch64__)
#define HYPURA_JUMP(name)                                                     \
    "    hint #34\n    adrp x16, hypura_host_" #name "\n"                         \
    "    ldr x16, [x16, #:lo12:hypura_host_" #name "]\n    br x16\n"
#else
#error "jumps are written for x86-64 and AArch64 only"
#endif

#define HYPURA_DEFINE(name)                                                             \
    extern "C" { __attribute__((visibility("hidden"))) void * hypura_host_##name; }     \
    asm(".pushsection .text\n.p2align 4\n"                                              \
        ".globl " #name "\n.hidden " #name "\n.type " #name ", %function\n" #name ":\n" \
        HYPURA_JUMP(name)                                                               \
        ".size " #name ", . - " #name "\n.popsection\n");
// clang-format on

HYPURA_HOST_FUNCTIONS(HYPURA_DEFINE)

namespace {

#define HYPURA_ENTRY(name) { #name, &hypura_host_##name },
const struct {
    const char * name;
    void ** address;
} functions[] = { HYPURA_HOST_FUNCTIONS(HYPURA_ENTRY) };

// the library that has the code at an address, or the program
void * library_of(const void * code) {
    Dl_info info;
    void * library = nullptr;
    if (dladdr(code, &info) && info.dli_fname) {
        library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }
    return library ? library : dlopen(nullptr, RTLD_LAZY);
}

// finds all functions; returns the name of one that there is not, if any
const char * find_functions(void * library) {
    for (const auto & function : functions) {
        *function.address = dlsym(library, function.name);
        if (!*function.address) {
            return function.name;
        }
    }
    return nullptr;
}

} // namespace

extern "C" {

GGML_BACKEND_API ggml_backend_reg_t ggml_backend_init(void);

ggml_backend_reg_t ggml_backend_init(void) {
    void * library = library_of(__builtin_return_address(0));
    if (const char * missing = find_functions(library)) {
        // ggml's log cannot be reached
        fprintf(stderr,
                "hypura: the ggml that loads this backend has no %s; not used: build it with the headers of this "
                "llama.cpp\n",
                missing);
        return nullptr;
    }
    return ggml_backend_hypura_reg();
}

} // extern "C"
