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
// TILE_K products are fetched into registers while those of this one are multiplied; one barrier a step. Where k leads is
// the same for all columns: two warps find FOUND of them for everybody, eight steps ahead.
//
// Compiled in: IN, SUM, OUT (types.cuh), TILE_M, TILE_N, PER, PADDING (gather.cuh), TAPS, whether k counts kernels'
// elements (1) or positions (0), and LANES, what neighbouring threads fetch neighbours of: 0 columns (images with channels
// first), 1 rows (channels last; weight gradients). Anything else is run-time. Edges are masked here: any M, N and K work.
#include "product.cuh"
#include "types.cuh"

#define TILE_K 8
#define FOUND 64
#define STEPS (FOUND / TILE_K)
// Of a step's k: all eight at once spill 24 bytes on sm_100 and later.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define UNROLLED 4
#else
#define UNROLLED TILE_K
#endif
#define QUADS (PER / 4)
#define THREADS ((TILE_M / PER) * (TILE_N / PER))
#define DENSE (TILE_M * TILE_K / THREADS)     // elements of each operand that one thread fetches a step
#define GATHERED (TILE_N * TILE_K / THREADS)

struct __align__(16) Quad { SUM of[4]; };
struct __align__(sizeof(OUT) < 4 ? 4 * sizeof(OUT) : 16) Four { OUT of[4]; };

// Rows of shared memory are four elements longer than the tile: eight k of four m then fill all 32 banks.
#define PITCH_M (TILE_M + 4)
#define PITCH_N (TILE_N + 4)

extern "C" __global__ void __launch_bounds__(THREADS, LANES || !TAPS || sizeof(IN) < 4 ? 1 : 2)
    implicit_gemm(const __grid_constant__ GatheredProduct p) {
    __shared__ __align__(16) SUM dense_tile[2][TILE_K][PITCH_M];
    __shared__ __align__(16) SUM gathered_tile[2][TILE_K][PITCH_N];
    __shared__ Row<PADDING> rows[2][FOUND];

    const unsigned thread = threadIdx.x;
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
    // Columns' places: a pointer where there is one, else distances from the first, which take half the registers.
    typedef Distances<PADDING>::type Distance;
    Spot<PADDING> columns[LANES ? GATHERED : 1];
    Distance places[LANES ? GATHERED : 1];
    const IN* const near = gathered + locate(min(first_j + (LANES ? 0 : gathered_j), p.N - 1), p.column).gathered;
#pragma unroll
    for (int i = 0; i < (LANES ? GATHERED : 1); ++i) {
        const int j = first_j + gathered_j + i * step_j;
        const Place place = locate(min(j, p.N - 1), p.column);
        find<!TAPS>(columns[i], place, j < p.N, p);
        places[i] = LANES ? (Distance)(gathered + place.gathered - near) : 0;
    }

    const IN* const dense_first = dense + dense_m * p.dense_row;
    const long long dense_step = THREADS / TILE_K * p.dense_row;
    const int left_k = last_k - first_k - dense_k, left_m = p.M - dense_m;
    SUM next_dense[DENSE], next_gathered[GATHERED];
    auto fetch = [&](unsigned step) {
        const Row<PADDING>* const found = rows[step / STEPS % 2] + step % STEPS * TILE_K;
        const bool there = (int)(step * TILE_K) < left_k;
        const IN* from = dense_first + found[dense_k].other;
#pragma unroll
        for (int i = 0; i < DENSE; ++i, from += dense_step)
            next_dense[i] = there && i * (THREADS / TILE_K) < left_m ? convert<SUM>(*from) : (SUM)0;
#pragma unroll
        for (int i = 0; i < GATHERED; ++i) {
            Distance distance;
            const int at = LANES ? i : 0;
            const bool inside = reach(found[gathered_k + i * step_k], columns[at], p, distance);
            next_gathered[i] = inside ? convert<SUM>(near[places[at] + distance]) : (SUM)0;
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
    auto find_rows = [&](unsigned batch) {
        if (thread >= FOUND) return;
        const int k = first_k + batch * FOUND + thread;
        find<TAPS>(rows[batch % 2][thread], locate(k < last_k ? k : 0, p.row), k < last_k, p);
    };

    const int quad_m = thread / (TILE_N / PER) * 4, quad_n = thread % (TILE_N / PER) * 4;
    SUM sums[PER][PER] = {};

    const unsigned steps = (last_k - first_k + TILE_K - 1) / TILE_K;
    find_rows(0);
    __syncthreads();
    fetch(0);
    keep(0);
    __syncthreads();
    for (unsigned step = 0; step < steps; ++step) {
        const int buffer = step % 2;
        if (step + 1 < steps) fetch(step + 1);
#pragma unroll UNROLLED
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
        if (step + 1 < steps) keep(buffer ^ 1);
        if (step % STEPS == 0) find_rows(step / STEPS + 1);
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
    // Four columns beside each other are one store where they are neighbours in the result.
#pragma unroll
    for (int q = 0; q < QUADS; ++q) {
        const int column = first_j + quad_n + q * (TILE_N / QUADS);
        if (p.vector % 4 == 0) {
            if (column >= p.N) continue;
            OUT* const to = result + locate(column, p.column).other;
#pragma unroll
            for (int i = 0; i < PER; ++i) {
                const int m = first_m + quad_m + i / 4 * (TILE_M / QUADS) + i % 4;
                if (m >= p.M) continue;
                Four four;
#pragma unroll
                for (int at = 0; at < 4; ++at) four.of[at] = convert<OUT>(sums[i][q * 4 + at]);
                *(Four*)(to + m * p.result_row) = four;
            }
            continue;
        }
#pragma unroll
        for (int at = 0; at < 4; ++at) {
            if (column + at >= p.N) continue;
            OUT* const to = result + locate(column + at, p.column).other;
#pragma unroll
            for (int i = 0; i < PER; ++i) {
                const int m = first_m + quad_m + i / 4 * (TILE_M / QUADS) + i % 4;
                if (m < p.M) to[m * p.result_row] = convert<OUT>(sums[i][q * 4 + at]);
            }
        }
    }
}
