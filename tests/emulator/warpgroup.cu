// The wrappers of ptx.cuh for compute capability 9.0 once, by one warpgroup: two tiles of float16 and two of bfloat16, 64 rows of k
// each, multiplied and added to every thread's number.
#include "types.cuh"

#define LEFT 64
#define RIGHT 128
#define CHUNKS 8

struct Warpgroup {
    const void* left;   // [type][row][k], 128 bytes of k
    const void* right;
    void* results;      // [type][thread][fragment][sum]
};

// Rows of a tile to shared memory, chunk c of row r to c ^ (r % 8).
__device__ __forceinline__ void fetch(unsigned char* tile, const void* rows, int type, int count) {
    for (int at = threadIdx.x; at < count * CHUNKS; at += 128) {
        const int row = at / CHUNKS, chunk = at % CHUNKS;
        const unsigned char* const from = (const unsigned char*)rows + (type * count + row) * 128 + chunk * 16;
        copy_async<16>(tile + row * 128 + (chunk ^ row % CHUNKS) * 16, from, true);
    }
}

extern "C" __global__ void __launch_bounds__(128) warpgroup(const __grid_constant__ Warpgroup p) {
    DYNAMIC_SHARED(tiles, 1024);
    unsigned char* const left = tiles;
    unsigned char* const right = tiles + 2 * LEFT * 128;
    float sums[2][1][16][4];
    for (int i = 0; i < 128; ++i) sums[i / 64][0][i / 4 % 16][i % 4] = (float)threadIdx.x;
#pragma unroll
    for (int type = 0; type < 2; ++type) {
        fetch(left + type * LEFT * 128, p.left, type, LEFT);
        fetch(right + type * RIGHT * 128, p.right, type, RIGHT);
    }
    close_copies();
    wait_for_copies<0>();
    show_copies();
    __syncthreads();
    begin_products();
#pragma unroll
    for (int k = 0; k < 128; k += 32) multiply_tiles_float16(sums[0][0], left + k, right + k);
    close_products();
    begin_products();
#pragma unroll
    for (int k = 0; k < 128; k += 32)
        multiply_tiles_bfloat16(sums[1][0], left + LEFT * 128 + k, right + RIGHT * 128 + k);
    close_products();
    wait_for_products<1>(sums[0]);
    wait_for_products<0>(sums[1]);
    float* const results = (float*)p.results;
#pragma unroll
    for (int i = 0; i < 128; ++i) results[(i / 64 * 128 + threadIdx.x) * 64 + i % 64] = sums[i / 64][0][i / 4 % 16][i % 4];
}
