// CUDA's thread model on a CPU, enough to run the kernels' own sources: every CUDA thread is a fiber, a block's fibers
// take turns on one thread of the machine.
//
// A fiber runs until it waits: at __syncthreads for the block, at a collective of its warp (shuffles, and whatever is
// built on `collective`) for its warp. Which fiber runs next is drawn from the seed, so that code that leans on an
// order is found out. Shared memory begins as NaN (all bits set), so that reading what nobody wrote shows.
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
void wait_for_warp();
unsigned char* slot(unsigned lane);  // 64 bytes that a lane of the running fiber's warp brings to a collective
extern unsigned char* dynamic_memory;
void run_grid(void (*thread)(), unsigned grid, unsigned threads, unsigned shared, unsigned long long seed);

inline unsigned lane() { return threadIdx.x % WARP; }

// Every lane brings `mine`; once all have, each calls `take(slots)`, and nobody leaves before all have taken.
template <typename T, typename Take>
auto collective(const T& mine, Take take) {
    static_assert(sizeof(T) <= 64, "a collective carries up to 64 bytes a lane");
    __builtin_memcpy(slot(lane()), &mine, sizeof(T));
    wait_for_warp();
    auto got = take([](unsigned from) {
        T value;
        __builtin_memcpy(&value, slot(from % WARP), sizeof(T));
        return value;
    });
    wait_for_warp();
    return got;
}

}  // namespace emulator

static inline void __syncthreads() { emulator::wait_for_block(); }
static inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait_for_warp(); }

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

// One fiber runs at a time, so nothing can come between reading and writing.
static inline int atomicMax(int* address, int value) {
    const int before = *address;
    *address = max(before, value);
    return before;
}
