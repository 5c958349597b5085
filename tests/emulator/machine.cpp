// The scheduler behind shim.h: who runs next, and who waits for whom.
#include "shim.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

uint3 threadIdx, blockIdx, blockDim, gridDim;

// Where the linker puts everything that is __shared__; weak, for a kernel may have nothing there.
extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

namespace emulator {

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = true;
    bool ready = false;    // may run
    bool in_warp = false;  // waits for its warp, not for the block
};

struct Warp {
    unsigned char slots[WARP][64];
    unsigned arrived = 0;  // lanes, one bit each
};

unsigned char* dynamic_memory;

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static std::vector<unsigned char> dynamic;
static unsigned current;
static ucontext_t scheduler;
static unsigned long long state;
static void (*run_thread)();

static unsigned draw() {  // xorshift64*: Vigna, An experimental exploration of Marsaglia's xorshift generators (2016)
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (unsigned)(state * 2685821657736338717ull >> 32);
}

static void to_scheduler() { swapcontext(&fibers[current].context, &scheduler); }

static void fail(const char* why) {
    std::fprintf(stderr, "emulator: %s (block %u)\n", why, blockIdx.x);
    std::abort();
}

unsigned char* slot(unsigned of) { return warps[threadIdx.x / WARP].slots[of]; }

// The block goes on once every fiber that has not returned waits at a barrier.
void wait_for_block() {
    fibers[current].ready = false, fibers[current].in_warp = false;
    to_scheduler();
}

void wait_for_warp() {
    const unsigned first = threadIdx.x / WARP * WARP;
    const unsigned last = std::min<unsigned>(first + WARP, blockDim.x);
    Warp& mine = warps[threadIdx.x / WARP];
    mine.arrived |= 1u << lane();
    unsigned expected = 0;
    for (unsigned t = first; t < last; ++t) expected |= (unsigned)!fibers[t].done << (t - first);
    if (mine.arrived == expected) {
        mine.arrived = 0;
        for (unsigned t = first; t < last; ++t)
            if (!fibers[t].done && fibers[t].in_warp) fibers[t].ready = true, fibers[t].in_warp = false;
        return;
    }
    fibers[current].ready = false, fibers[current].in_warp = true;
    to_scheduler();
}

static void fiber_main() {
    run_thread();
    fibers[current].done = true, fibers[current].ready = false;
    swapcontext(&fibers[current].context, &scheduler);
}

static void resume(unsigned thread) {
    current = thread;
    threadIdx = {thread, 0, 0};
    swapcontext(&scheduler, &fibers[thread].context);
}

// One block: pick a random warp with something to do, let its ready lanes run in a random order, until all are done.
static void run_block(unsigned threads) {
    if (__start_shared_memory) std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    std::memset(dynamic.data(), 0xff, dynamic.size());
    for (unsigned t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[t];
        fiber.done = false, fiber.ready = true, fiber.in_warp = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    for (Warp& warp : warps) warp.arrived = 0;
    const unsigned count = (threads + WARP - 1) / WARP;
    for (;;) {
        bool ran = false;
        const unsigned begin = draw() % count;
        for (unsigned w = 0; w < count; ++w) {
            const unsigned first = (begin + w) % count * WARP;
            const unsigned lanes = std::min<unsigned>(WARP, threads - first);
            const unsigned turn = draw() % lanes;
            for (unsigned l = 0; l < lanes; ++l) {
                const unsigned t = first + (turn + l) % lanes;
                if (fibers[t].ready) ran = true, resume(t);
            }
        }
        if (ran) continue;
        bool waiting = false;
        for (unsigned t = 0; t < threads; ++t) {
            if (fibers[t].done) continue;
            if (fibers[t].in_warp) fail("a warp waits for lanes that wait elsewhere");
            waiting = fibers[t].ready = true;
        }
        if (!waiting) return;
    }
}

void run_grid(void (*thread)(), unsigned grid, unsigned threads, unsigned shared, unsigned long long seed) {
    run_thread = thread;
    state = seed * 2 + 1;
    for (int i = 0; i < 8; ++i) draw();
    blockDim = {threads, 1, 1}, gridDim = {grid, 1, 1};
    if (fibers.size() < threads) fibers.resize(threads);
    for (Fiber& fiber : fibers) fiber.stack.resize(64 * 1024);
    warps.resize((threads + WARP - 1) / WARP);
    dynamic.resize(shared + 15);
    dynamic_memory = dynamic.data() + (16 - (unsigned long long)dynamic.data() % 16) % 16;
    const unsigned first = draw() % grid;
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {(first + b) % grid, 0, 0};
        run_block(threads);
    }
}

}  // namespace emulator
