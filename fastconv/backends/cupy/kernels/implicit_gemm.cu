// The one product behind a convolution and both of its gradients, on CUDA cores: no column matrix exists.
//
//   result[m, j] = bias[m] + sum_k dense[m, k] * gathered[place(k) + place(j)]        for every group
//
// forward          m out channel, k (c, tap),        j (image, output position), dense = weight, gathered = input
// input gradient   m in channel,  k (o, tap),        j (image, position of one phase), dense = weight, gathered = dy
// weight gradient  m out channel, k (image, output position), j (c, tap),        dense = dy, gathered = input
//
// k and j are numbers of mixed radix (geometry.cuh). A block makes a TILE_M x TILE_N tile of one group and one part of
// k, a thread PER x PER of it in quads: 16 bytes of shared memory feed four columns or rows. The tiles of the next
// TILE_K products are fetched into registers while those of this one are multiplied; one barrier a step.
//
// Compiled in: IN, SUM, OUT (types.cuh), TILE_M, TILE_N, PER, PADDING (gather.cuh), and LANES, what neighbouring
// threads fetch neighbours of: 0 columns (images with channels first), 1 rows (channels last; weight gradients).
// Anything else is run-time. Edges are masked here: any M, N and K work. Distances are 64-bit.
#include "product.cuh"
#include "types.cuh"

#define TILE_K 8
#define QUADS (PER / 4)
#define THREADS ((TILE_M / PER) * (TILE_N / PER))
#define DENSE (TILE_M * TILE_K / THREADS)     // elements of each operand that one thread fetches a step
#define GATHERED (TILE_N * TILE_K / THREADS)

struct __align__(16) Quad { SUM of[4]; };

// Rows of shared memory are four elements longer than the tile: eight k of four m then fill all 32 banks.
#define PITCH_M (TILE_M + 4)
#define PITCH_N (TILE_N + 4)

extern "C" __global__ void __launch_bounds__(THREADS, LANES || sizeof(IN) < 4 ? 1 : 2)
    implicit_gemm(const __grid_constant__ GatheredProduct p) {
    __shared__ __align__(16) SUM dense_tile[2][TILE_K][PITCH_M];
    __shared__ __align__(16) SUM gathered_tile[2][TILE_K][PITCH_N];
    __shared__ Place rows[2][TILE_K];

    const int thread = threadIdx.x;
    int block = blockIdx.x;
    int rest = divide(block, p.tiles_m);
    const int first_m = (block - rest * (int)p.tiles_m.divisor) * TILE_M;
    block = rest, rest = divide(block, p.tiles_n);
    const int first_j = (block - rest * (int)p.tiles_n.divisor) * TILE_N;
    block = rest;
    const int group = divide(block, p.parts);
    const int part = block - group * (int)p.parts.divisor;
    const int first_k = part * p.part;
    const int last_k = min(first_k + p.part, p.K);

    const IN* const gathered = (const IN*)p.gathered + group * p.gathered_group + p.start;
    const IN* const dense = (const IN*)p.dense + group * p.dense_group;

    // What this thread fetches: of the dense tile one k of DENSE rows, of the gathered one by LANES.
    const int dense_k = thread % TILE_K, dense_m = first_m + thread / TILE_K;
    const int gathered_k = LANES ? thread % TILE_K : thread / TILE_N;
    const int gathered_j = LANES ? thread / TILE_K : thread % TILE_N;
    const int step_k = LANES ? 0 : THREADS / TILE_N, step_j = LANES ? THREADS / TILE_K : 0;
    Place columns[LANES ? GATHERED : 1];
#pragma unroll
    for (int i = 0; i < (LANES ? GATHERED : 1); ++i) {
        columns[i] = locate(min(first_j + gathered_j + i * step_j, p.N - 1), p.column);
#pragma unroll
        for (int axis = 0; axis < AXES; ++axis) columns[i].position[axis] += p.origin[axis];
    }

    SUM next_dense[DENSE], next_gathered[GATHERED];
    auto fetch = [&](int k, const Place(&places)[TILE_K]) {
#pragma unroll
        for (int i = 0; i < DENSE; ++i) {
            const int m = dense_m + i * (THREADS / TILE_K);
            const bool there = k + dense_k < last_k && m < p.M;
            next_dense[i] = there ? convert<SUM>(dense[m * p.dense_row + places[dense_k].other]) : (SUM)0;
        }
#pragma unroll
        for (int i = 0; i < GATHERED; ++i) {
            const int row = gathered_k + i * step_k;
            const bool there = k + row < last_k && first_j + gathered_j + i * step_j < p.N;
            long long distance;
            const bool inside =
                reach<PADDING>(places[row], columns[LANES ? i : 0], p.size, p.axis_stride, distance);
            next_gathered[i] = there && inside ? convert<SUM>(gathered[distance]) : (SUM)0;
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < DENSE; ++i)
            dense_tile[buffer][dense_k][dense_m - first_m + i * (THREADS / TILE_K)] = next_dense[i];
#pragma unroll
        for (int i = 0; i < GATHERED; ++i)
            gathered_tile[buffer][gathered_k + i * step_k][gathered_j + i * step_j] = next_gathered[i];
    };
    // Digits of k are the same for all columns: eight threads find them for everybody, a step ahead.
    auto find_rows = [&](int buffer, int k) {
        if (thread < TILE_K) rows[buffer][thread] = locate(min(k + thread, p.K - 1), p.row);
    };

    const int quad_m = thread / (TILE_N / PER) * 4, quad_n = thread % (TILE_N / PER) * 4;
    SUM sums[PER][PER] = {};

    find_rows(0, first_k);
    __syncthreads();
    fetch(first_k, rows[0]);
    keep(0);
    find_rows(1, first_k + TILE_K);
    __syncthreads();
    int buffer = 0;
    for (int k = first_k; k < last_k; k += TILE_K, buffer ^= 1) {
        const bool more = k + TILE_K < last_k;
        if (more) fetch(k + TILE_K, rows[buffer ^ 1]);
#pragma unroll
        for (int inner = 0; inner < TILE_K; ++inner) {
            Quad left[QUADS], right[QUADS];
#pragma unroll
            for (int q = 0; q < QUADS; ++q) {
                left[q] = *(const Quad*)&dense_tile[buffer][inner][quad_m + q * (TILE_M / QUADS)];
                right[q] = *(const Quad*)&gathered_tile[buffer][inner][quad_n + q * (TILE_N / QUADS)];
            }
#pragma unroll
            for (int i = 0; i < PER; ++i)
#pragma unroll
                for (int j = 0; j < PER; ++j) sums[i][j] += left[i / 4].of[i % 4] * right[j / 4].of[j % 4];
        }
        if (more) keep(buffer ^ 1);
        find_rows(buffer, k + 2 * TILE_K);
        __syncthreads();
    }

    OUT* const result = (OUT*)p.result + group * p.result_group + part * p.result_split;
    if (p.bias) {
        const OUT* const bias = (const OUT*)p.bias + group * p.bias_group;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
            const int m = first_m + quad_m + i / 4 * (TILE_M / QUADS) + i % 4;
            const SUM addend = m < p.M ? convert<SUM>(bias[m * p.bias_row]) : (SUM)0;
#pragma unroll
            for (int j = 0; j < PER; ++j) sums[i][j] += addend;
        }
    }
#pragma unroll
    for (int j = 0; j < PER; ++j) {
        const int column = first_j + quad_n + j / 4 * (TILE_N / QUADS) + j % 4;
        if (column >= p.N) continue;
        const long long distance = locate(column, p.column).other;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
            const int m = first_m + quad_m + i / 4 * (TILE_M / QUADS) + i % 4;
            if (m >= p.M) continue;
            result[m * p.result_row + distance] = convert<OUT>(sums[i][j]);
        }
    }
}
