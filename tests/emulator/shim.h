// CUDA's thread model on a CPU, enough to run the kernels' own sources: every CUDA thread is a fiber, a block's fibers
// take turns on one thread of the machine.
//
// A fiber runs until it waits: at __syncthreads for the block, at a collective of its warp (shuffles, and whatever is
// built on `collective`) for its warp. Which fiber runs next is drawn from the seed, so that code that leans on an
// order is found out. Shared memory begins as NaN (all bits set), so that reading what nobody wrote shows. What waits in
// vain - at a barrier that some have returned from, in a collective of a warp that is not whole - is reported.
//
// machine.cpp is never built with a sanitizer, and kernels may be: what is to be seen as the kernel's own access to memory
// stands here. Under ThreadSanitizer every fiber is a thread, and only __syncthreads and __syncwarp order accesses.
//
// No header of the C++ library is included here: half of the time a kernel takes to compile would go there.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shared_memory")))

struct uint3 { unsigned x, y, z; };
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }

namespace emulator {

const int WARP = 32;

// machine.cpp, compiled once for all kernels.
void wait_for_block();
void wait_for_warp(bool orders_memory);
void bring(const void* mine, unsigned bytes);                // to a collective of the running fiber's warp
void take(unsigned from_lane, void* value, unsigned bytes);  // what that lane brought
extern unsigned char* dynamic_memory;
[[noreturn]] void fail(const char* why);

// An asynchronous copy: read when it is asked for, written when it is waited for.
struct Copy {
    void* to;
    unsigned size;
    unsigned char bytes[16];
};
void queue(const Copy& copy);
void close_group();
bool due(unsigned groups, Copy& next);  // the oldest copy that may not stay outstanding with so many groups

// A product of two tiles, which the running thread adds to its sums (64 of them) when it is waited for. A tile that is not what
// was read when it was asked for has changed meanwhile.
struct Product {
    float* sums;
    const void *left, *right;
    float (*number)(unsigned short);
    unsigned long long read;
};
void show_copies();
void begin_products();
void queue(const Product& product);
void close_products();
bool due(unsigned groups, Product& next);
void run_grid(void (*thread)(), unsigned grid, unsigned threads, unsigned shared, unsigned long long seed);

inline unsigned lane() { return threadIdx.x % WARP; }

// Every lane brings `mine`; once all have, each calls `get(of)`, where of(lane) is what that lane brought. It lies there until
// the next collective but one, and nobody is through the next before all have got what they want of this one.
template <typename T, typename Get>
auto collective(const T& mine, Get get) {
    static_assert(sizeof(T) <= 64, "a collective carries up to 64 bytes a lane");
    bring(&mine, sizeof(T));
    wait_for_warp(false);
    return get([](unsigned from) {
        T value;
        take(from % WARP, &value, sizeof(T));
        return value;
    });
}

// From here to the wait nobody may count on what lies at `to`, neither the old nor the new: it is NaN.
inline void copy_later(void* to, const void* from, unsigned size, unsigned given) {
    if ((unsigned long long)to % size || (unsigned long long)from % size)
        fail("the address of an asynchronous copy is no multiple of its size");
    Copy copy = {to, size, {}};
    for (unsigned i = 0; i < given; ++i) copy.bytes[i] = ((const unsigned char*)from)[i];
    for (unsigned i = 0; i < size; ++i) ((unsigned char*)to)[i] = 0xff;
    queue(copy);
}
inline void wait_for_copies(unsigned groups) {
    Copy copy;
    while (due(groups, copy))
        for (unsigned i = 0; i < copy.size; ++i) ((unsigned char*)copy.to)[i] = copy.bytes[i];
}

}  // namespace emulator

static inline void __syncthreads() { emulator::wait_for_block(); }
static inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait_for_warp(true); }

template <typename T>
static inline T __shfl_sync(unsigned, T value, int from) {
    return emulator::collective(value, [&](auto of) { return of((unsigned)from); });
}
template <typename T>
static inline T __shfl_xor_sync(unsigned, T value, int mask) {
    const unsigned me = emulator::lane();
    return emulator::collective(value, [&](auto of) { return of(me ^ (unsigned)mask); });
}
template <typename T>
static inline T __shfl_down_sync(unsigned, T value, unsigned by) {
    const unsigned me = emulator::lane();
    return emulator::collective(value, [&](auto of) { return of(me + by < emulator::WARP ? me + by : me); });
}

static inline int atomicMax(int* address, int value) {
    int before = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (before < value && !__atomic_compare_exchange_n(address, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return before;
}
