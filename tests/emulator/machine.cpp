// The scheduler behind shim.h: who runs next, and who waits for whom.
#include "shim.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <ucontext.h>
#include <vector>

uint3 threadIdx, blockIdx, blockDim, gridDim;

// Where the linker puts everything that is __shared__; weak, for a kernel may have nothing there.
extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

// Of ThreadSanitizer, where it is loaded.
#define WEAK __attribute__((weak))
extern "C" {
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_destroy_fiber(void* fiber);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* at);
WEAK void __tsan_release(void* at);
}

namespace emulator {

// What a thread has asked for and not waited for, in the groups it has closed.
template <typename Work>
struct Outstanding {
    std::deque<Work> asked;
    std::deque<unsigned> groups;  // how many in each closed group
    unsigned open = 0;            // in none yet

    void add(const Work& work) { asked.push_back(work), ++open; }
    void close() { groups.push_back(open), open = 0; }
    bool due(unsigned most, Work& next) {
        while (groups.size() > most) {
            if (groups.front()) {
                --groups.front(), next = asked.front(), asked.pop_front();
                return true;
            }
            groups.pop_front();
        }
        return false;
    }
};

struct Fiber {
    ucontext_t context;  // of its beginning; from then on it is where it jumped from
    void* place[5];
    bool started = false;
    std::vector<char> stack;
    Outstanding<Copy> copies;
    Outstanding<Product> products;
    bool hidden = false;  // whether copies have landed that it has not shown
    bool begun = false;   // whether products may be asked for
    void* watched = nullptr;      // ThreadSanitizer's name for it
    bool done = true;
    bool ready = false;    // may run
    bool in_warp = false;  // waits for its warp, not for the block
    unsigned turn = 0;     // of its warp's two rows of slots
};

struct Warp {
    unsigned char slots[2][WARP][64];  // in turns, from one collective to the next
    unsigned arrived = 0;  // lanes, one bit each
    char barrier = 0;      // its address is what ThreadSanitizer knows __syncwarp by
};

unsigned char* dynamic_memory;

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static unsigned current;
static unsigned hidden;  // fibers of the block that are
static ucontext_t scheduler;
static void* scheduler_place[5];
static unsigned long long state;
static void (*run_thread)();

static unsigned draw() {  // xorshift64*: Vigna, An experimental exploration of Marsaglia's xorshift generators (2016)
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (unsigned)(state * 2685821657736338717ull >> 32);
}

// What happened before a release is before what follows an acquire of the same address; a switch alone orders nothing.
static const unsigned NO_ORDER = 1;
static void* watched_scheduler;
static char barrier, end;
static void release(char& at) { if (__tsan_release) __tsan_release(&at); }
static void acquire(char& at) { if (__tsan_acquire) __tsan_acquire(&at); }

static void to_scheduler() {
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(watched_scheduler, NO_ORDER);
    // Five words are saved; swapcontext also asks the kernel for the mask of signals, which takes ten times as long.
    if (!__builtin_setjmp(fibers[current].place)) __builtin_longjmp(scheduler_place, 1);
}

[[noreturn]] void fail(const char* why) {
    std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", why, blockIdx.x, threadIdx.x);
    std::abort();
}

// Sanitizers watch memcpy and memset wherever they are called from.
static void copy_unseen(volatile unsigned char* to, const volatile unsigned char* from, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) to[i] = from[i];
}
static void fill_unseen(volatile unsigned char* to, const volatile unsigned char* end) {
    while (to != end) *to++ = 0xff;
}

void bring(const void* mine, unsigned bytes) {
    unsigned& turn = fibers[current].turn;
    turn = !turn;
    copy_unseen(warps[threadIdx.x / WARP].slots[turn][lane()], (const unsigned char*)mine, bytes);
}
void take(unsigned from, void* value, unsigned bytes) {
    copy_unseen((unsigned char*)value, warps[threadIdx.x / WARP].slots[fibers[current].turn][from], bytes);
}

void queue(const Copy& copy) { fibers[current].copies.add(copy); }
void close_group() { fibers[current].copies.close(); }
bool due(unsigned groups, Copy& next) {
    if (!fibers[current].copies.due(groups, next)) return false;
    hidden += !fibers[current].hidden, fibers[current].hidden = true;
    return true;
}
void show_copies() { hidden -= fibers[current].hidden, fibers[current].hidden = false; }

void begin_products() { fibers[current].begun = true; }
void queue(const Product& product) {
    if (!fibers[current].begun) fail("a product is asked for that was not begun");
    if (hidden) fail("a product is asked for while copies have landed that were not shown");
    fibers[current].products.add(product);
}
void close_products() { fibers[current].products.close(), fibers[current].begun = false; }
bool due(unsigned groups, Product& next) { return fibers[current].products.due(groups, next); }

// The block goes on once every fiber waits here.
void wait_for_block() {
    release(barrier);
    fibers[current].ready = false, fibers[current].in_warp = false;
    to_scheduler();
    acquire(barrier);
}

void wait_for_warp(bool orders_memory) {
    const unsigned first = threadIdx.x / WARP * WARP;
    const unsigned last = std::min<unsigned>(first + WARP, blockDim.x);
    Warp& mine = warps[threadIdx.x / WARP];
    if (orders_memory) release(mine.barrier);
    mine.arrived |= 1u << lane();
    const unsigned expected = last - first == WARP ? ~0u : (1u << (last - first)) - 1;
    if (mine.arrived == expected) {
        mine.arrived = 0;
        for (unsigned t = first; t < last; ++t)
            if (fibers[t].in_warp) fibers[t].ready = true, fibers[t].in_warp = false;
    } else {
        fibers[current].ready = false, fibers[current].in_warp = true;
        to_scheduler();
    }
    if (orders_memory) acquire(mine.barrier);
}

static void fiber_main() {
    run_thread();
    fibers[current].done = true, fibers[current].ready = false;
    release(end);
    to_scheduler();
}

static void resume(unsigned thread) {
    current = thread;
    threadIdx = {thread, 0, 0};
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fibers[thread].watched, NO_ORDER);
    if (__builtin_setjmp(scheduler_place)) return;
    if (fibers[thread].started) __builtin_longjmp(fibers[thread].place, 1);
    fibers[thread].started = true;
    swapcontext(&scheduler, &fibers[thread].context);
}

// One block: pick a random warp with something to do, let its ready lanes run in a random order, until all are done.
static void run_block(unsigned threads, unsigned shared) {
    if (__start_shared_memory)
        fill_unseen((unsigned char*)__start_shared_memory, (unsigned char*)__stop_shared_memory);
    fill_unseen(dynamic_memory, dynamic_memory + shared);
    if (__tsan_get_current_fiber) watched_scheduler = __tsan_get_current_fiber();
    for (unsigned t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[t];
        fiber.done = false, fiber.ready = true, fiber.in_warp = false, fiber.turn = 0, fiber.started = false;
        fiber.copies = {}, fiber.products = {}, fiber.hidden = false, fiber.begun = false;
        if (__tsan_create_fiber) fiber.watched = __tsan_create_fiber(0);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    for (Warp& warp : warps) warp.arrived = 0;
    hidden = 0;
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
        unsigned returned = 0;
        for (unsigned t = 0; t < threads; ++t) {
            threadIdx = {t, 0, 0};
            if (fibers[t].in_warp) fail("deadlock: a warp waits for lanes that wait elsewhere or have returned");
            returned += fibers[t].done, fibers[t].ready = !fibers[t].done;
        }
        if (returned == threads) break;
        if (returned) fail("deadlock: threads wait at a barrier that others have returned without");
    }
    acquire(end);
    for (unsigned t = 0; t < threads; ++t)
        if (__tsan_destroy_fiber) __tsan_destroy_fiber(fibers[t].watched);
}

void run_grid(void (*thread)(), unsigned grid, unsigned threads, unsigned shared, unsigned long long seed) {
    run_thread = thread;
    state = seed * 2 + 1;
    for (int i = 0; i < 8; ++i) draw();
    blockDim = {threads, 1, 1}, gridDim = {grid, 1, 1};
    if (fibers.size() < threads) fibers.resize(threads);
    for (Fiber& fiber : fibers) fiber.stack.resize(64 * 1024);
    warps.resize((threads + WARP - 1) / WARP);
    // Of just this size, so that AddressSanitizer knows where it ends; where it begins decides how tiles are swizzled.
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, shared)) std::abort();
    dynamic_memory = (unsigned char*)memory;
    const unsigned first = draw() % grid;
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {(first + b) % grid, 0, 0};
        run_block(threads, shared);
    }
    std::free(dynamic_memory);
}

}  // namespace emulator
