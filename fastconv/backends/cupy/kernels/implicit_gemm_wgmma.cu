// The product of implicit_gemm_mma.cu by the instructions of compute capability 9.0: 16-bit numbers whose k are neighbours in
// memory in both operands, by vectors of 16 bytes; sums are float32.
//
// A block makes a TILE_M x TILE_N tile of one group and one part of k, every four warps 64 rows of it. Of each operand a
// stage of shared memory holds rows of 128 bytes, eight chunks of 16: TILE_K numbers of one m or one j. Chunk c of row r
// lies at c ^ (r % 8), which is how the instructions read them. They multiply what lies there while threads go on: a step's
// products are waited for in the next step, whose barrier then frees their stage. So of STAGES stages one is multiplied, one is
// being freed, and the others are under way.
//
// Compiled in: IN (float16, bfloat16), SUM (float32), OUT, TILE_M, TILE_N (multiples of 64 and 128), STAGES, PADDING (gather.cuh),
// TAPS (implicit_gemm.cu).
#include "tile.cuh"

#define VECTOR (16 / (int)sizeof(IN))
#define CHUNKS 8
#define ROW_BYTES (16 * CHUNKS)
#define TILE_K (CHUNKS * VECTOR)
#define THREADS (TILE_M * 2)
#define STAGE_BYTES ((TILE_M + TILE_N) * ROW_BYTES)
#define AHEAD (STAGES - 2)
#define ROWS (THREADS / CHUNKS)  // that all threads fetch together, a chunk each
#define DENSE (TILE_M / ROWS)
#define GATHERED (TILE_N / ROWS)
#define WIDTH 128  // columns of one instruction
#define FOUND 32   // places of k that one warp finds for everybody ahead
#define STEPS (FOUND / CHUNKS)
#define PITCH (TILE_N + 8)  // as in implicit_gemm_mma.cu
#define MOST_SHARED (227 * 1024)
#define BLOCKS (MOST_SHARED / (STAGES * STAGE_BYTES + 2048))  // on a multiprocessor

static_assert(AHEAD >= 1 && AHEAD <= STEPS, "the first stages find their places in the first batch");
static_assert(TILE_M * PITCH * sizeof(OUT) <= STAGES * STAGE_BYTES, "the finished tile takes the stages' memory");

__device__ __forceinline__ void multiply(float16, float (&sums)[WIDTH / 8][4], const void* left, const void* right) {
    multiply_tiles_float16(sums, left, right);
}
__device__ __forceinline__ void multiply(bfloat16, float (&sums)[WIDTH / 8][4], const void* left, const void* right) {
    multiply_tiles_bfloat16(sums, left, right);
}

// Where a column leads. Each is found once, by one thread: eight of them fetch it.
struct Column {
    long long gathered;
    Spot<PADDING> spot;
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    implicit_gemm_wgmma(const __grid_constant__ GatheredProduct p) {
    DYNAMIC_SHARED(stages, 1024);
    __shared__ Row<PADDING> rows[2][FOUND];

    const int thread = threadIdx.x;
    const Tile tile = tile_of<TILE_M, TILE_N>(blockIdx.x, p);
    const IN* const gathered = (const IN*)p.gathered + tile.group * p.gathered_group + p.start;
    const IN* const dense = (const IN*)p.dense + tile.group * p.dense_group;

    // This thread fetches the same chunk of every so many-th row.
    const int row = thread / CHUNKS, chunk = thread % CHUNKS;
    const int offset = row * ROW_BYTES + (chunk ^ row % CHUNKS) * 16;
    Column* const found_columns = (Column*)stages;
    for (int at = thread; at < TILE_N; at += THREADS) {
        const int j = tile.j + at;
        const Place place = locate(min(j, p.N - 1), p.column);
        find<!TAPS>(found_columns[at].spot, place, j < p.N, p);
        found_columns[at].gathered = place.gathered;
    }
    __syncthreads();
    Spot<PADDING> columns[GATHERED];
    const IN* places[GATHERED];
#pragma unroll
    for (int i = 0; i < GATHERED; ++i) {
        columns[i] = found_columns[row + i * ROWS].spot;
        places[i] = gathered + found_columns[row + i * ROWS].gathered;
    }
    // Rows past the last are a copy of it: nobody stores what comes of them.
    const IN* dense_rows[DENSE];
#pragma unroll
    for (int i = 0; i < DENSE; ++i) dense_rows[i] = dense + min(tile.m + row + i * ROWS, p.M - 1) * p.dense_row;

    const int steps = (tile.last_k - tile.first_k + TILE_K - 1) / TILE_K;
    auto find_rows = [&](int batch) {
        if (thread >= FOUND) return;
        const int k = tile.first_k + (batch * FOUND + thread) * VECTOR;
        find<TAPS>(rows[batch % 2][thread], locate(k < tile.last_k ? k : 0, p.row), k < tile.last_k, p);
    };
    // Rows of a batch are found when the first step of the one before is fetched: a barrier, or more, lies between.
    auto fetch = [&](int step) {
        if (step < steps) {
            unsigned char* const to = stages + step % STAGES * STAGE_BYTES + offset;
            const Row<PADDING> found = rows[step / STEPS % 2][step % STEPS * CHUNKS + chunk];
            const bool there = tile.first_k + step * TILE_K + chunk * VECTOR < tile.last_k;
#pragma unroll
            for (int i = 0; i < DENSE; ++i)
                copy_async<16>(to + i * ROWS * ROW_BYTES, dense_rows[i] + found.other, there);
#pragma unroll
            for (int i = 0; i < GATHERED; ++i) {
                typename Distances<PADDING>::type distance;
                const bool inside = reach(found, columns[i], p, distance);
                copy_async<16>(to + (TILE_M + i * ROWS) * ROW_BYTES, places[i] + distance, inside);
            }
            if (step % STEPS == 0) find_rows(step / STEPS + 1);
        }
        close_copies();
    };

    find_rows(0);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < AHEAD; ++step) fetch(step);

    const int warp_m = thread / 128 * 64;
    float sums[TILE_N / WIDTH][WIDTH / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<AHEAD - 1>();
        show_copies();
        __syncthreads();
        const unsigned char* const left = stages + step % STAGES * STAGE_BYTES + warp_m * ROW_BYTES;
        const unsigned char* const right = stages + step % STAGES * STAGE_BYTES + TILE_M * ROW_BYTES;
        begin_products();
#pragma unroll
        for (int k = 0; k < ROW_BYTES; k += 32)
#pragma unroll
            for (int i = 0; i < TILE_N / WIDTH; ++i)
                multiply(IN(), sums[i], left + k, right + i * WIDTH * ROW_BYTES + k);
        close_products();
        fetch(step + AHEAD);
        wait_for_products<1>(sums);
    }
    wait_for_products<0>(sums);
    wait_for_copies<0>();
    __syncthreads();

    OUT* const finished = (OUT*)stages;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
        const int at = warp_m + thread / 32 % 4 * 16 + thread % 32 / 4 + upper * 8;
        const float addend = addend_of(tile.m + at, tile, p);
#pragma unroll
        for (int i = 0; i < TILE_N / WIDTH; ++i)
            finish(finished + at * PITCH + i * WIDTH + thread % 4 * 2, sums[i], upper, addend, p);
    }
    __syncthreads();
    store<TILE_N, PITCH, THREADS>(finished, tile.m, TILE_M, tile, p);
}
