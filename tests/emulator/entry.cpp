// One kernel made callable: compiled with -DSOURCE="...cu" -DENTRY=name, linked with machine.cpp.
#include "shim.h"

#include SOURCE

template <typename Params>
static void run(void (*kernel)(Params), const void* params, unsigned grid, unsigned threads, unsigned shared,
                unsigned long long seed) {
    static Params given;
    static void (*entry)(Params);
    __builtin_memcpy(&given, params, sizeof given);
    entry = kernel;
    emulator::run_grid([] { entry(given); }, grid, threads, shared, seed);
}

extern "C" void emulate(const void* params, unsigned grid, unsigned threads, unsigned shared, unsigned long long seed) {
    run(ENTRY, params, grid, threads, shared, seed);
}
