// The product of implicit_gemm.cu on tensor cores: 16-bit numbers, or float32 rounded to tf32; sums are float32.
//
// A block makes a TILE_M x TILE_N tile of one group and one part of k, two rows of warps by TILE_N / 32, each warp
// TILE_M / 2 x 32. Of each operand a stage of shared memory holds rows of 64 bytes, four chunks of 16: TILE_K numbers of
// one m or one j. Chunk c of row r lies at c ^ (r / 2 % 4), so that the eight rows that ldmatrix reads, and the eight
// chunks that a quarter of a warp writes, fill all 32 banks. STAGES - 1 stages are under way while one is multiplied;
// one barrier a step.
//
// A chunk comes whole by one asynchronous copy where VECTOR numbers of k are neighbours in memory (DENSE_WHOLE,
// GATHERED_WHOLE: channels last, C a multiple of VECTOR), else number by number: of four bytes by copies too, of two
// through registers.
//
// With SPLIT float32 numbers become the sum of two tf32 numbers as fragments are loaded, and three products are summed:
// high by high, and what crosses, low by high and high by low. Tensor cores cut sums off where float32 would round them,
// so they form them of 8 products of high parts at most, which are then added as float32; those that cross are 2^-10 of
// these, and are added every SETTLED steps.
//
// Where k leads is the same for all columns: one warp finds FOUND places for everybody ahead.
//
// Compiled in: IN (float16, bfloat16, float32), SUM (float32), OUT, TILE_M, TILE_N, STAGES, PADDING (gather.cuh), TAPS and LANES
// (implicit_gemm.cu), DENSE_WHOLE, GATHERED_WHOLE, and SPLIT where it is 1.
#include "tile.cuh"

#ifndef SPLIT
#define SPLIT 0
#endif

#define VECTOR (16 / (int)sizeof(IN))
#define CHUNKS 4
#define ROW_BYTES (16 * CHUNKS)
#define TILE_K (CHUNKS * VECTOR)
#define THREADS (TILE_N * 2)
#define STAGE_BYTES ((TILE_M + TILE_N) * ROW_BYTES)
#define DENSE (TILE_M * CHUNKS / THREADS)  // chunks of each operand that one thread fetches a step
#define GATHERED (TILE_N * CHUNKS / THREADS)
#define FRAGMENTS_M (TILE_M / 32)
#define FRAGMENTS_N 4
#define SETTLED 16  // 256 of k: what cutting off costs the sums of what crosses is a third of 2^-23 of the products
#define PLACED (DENSE_WHOLE && GATHERED_WHOLE ? VECTOR : 1)  // every so many-th k of a step has its place looked up
#define FOUND 32
#define STEPS (FOUND / (TILE_K / PLACED))
// A row of the finished tile, a quarter of a warp's words longer than needed: rows then begin in different banks.
#define PITCH (TILE_N + 8)
// Rows of one half of the warps are finished at a time where the stages' memory holds no more.
#define HALVES (TILE_M * PITCH * (int)sizeof(OUT) <= STAGES * STAGE_BYTES ? 1 : 2)

__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * ROW_BYTES + (chunk ^ (row / 2 % CHUNKS)) * 16;
}

__device__ __forceinline__ unsigned bits_of(float16 value) { return value.bits; }
__device__ __forceinline__ unsigned bits_of(bfloat16 value) { return value.bits; }
__device__ __forceinline__ unsigned bits_of(float32 value) { return float_to_bits(value); }

__device__ __forceinline__ void round_words(float16, unsigned (&)[4]) {}
__device__ __forceinline__ void round_words(bfloat16, unsigned (&)[4]) {}
__device__ __forceinline__ void round_words(float32, unsigned (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = round_to_tf32(words[i]);
}

// Float32 words as high parts of 11 significant bits, to nearest, and what is left as low ones: 12 bits, of which tensor
// cores take 11. The low part of an infinity is NaN, but is never added: see settle. (A NaN whose payload is in its last 13
// bits alone, which no arithmetic makes, becomes an infinity.)
__device__ __forceinline__ void split(unsigned (&words)[4], unsigned (&low)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // The largest numbers would be rounded to infinity: cut off, they and infinities stay what they are.
        const unsigned whole = words[i], half = (whole & 0x7fffffff) < 0x7f7ff000 ? 0x1000 : 0;
        words[i] = (whole + half) & 0xffffe000;
        low[i] = float_to_bits(bits_to_float(whole) - bits_to_float(words[i]));
    }
}

__device__ __forceinline__ bool is_finite(float value) { return (float_to_bits(value) & 0x7fffffff) < 0x7f800000; }

__device__ __forceinline__ void multiply(float16, float (&sums)[4], const unsigned (&left)[4], const unsigned* right) {
    multiply_float16(sums, left, right);
}
__device__ __forceinline__ void multiply(bfloat16, float (&sums)[4], const unsigned (&left)[4], const unsigned* right) {
    multiply_bfloat16(sums, left, right);
}
__device__ __forceinline__ void multiply(float32, float (&sums)[4], const unsigned (&left)[4], const unsigned* right) {
    multiply_tf32(sums, left, right);
}

// One chunk on its way to shared memory; numbers of two bytes stay in `kept`. `find(i, from)` says where its i-th number lies,
// or that it is a zero: nothing is read then.
template <bool WHOLE, typename Find>
__device__ __forceinline__ void fetch_chunk(unsigned char* to, Chunk& kept, Find find) {
    const IN* from;
    if (WHOLE) {
        const bool there = find(0, from);
        copy_async<16>(to, from, there);
        return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const bool there = find(i, from);
        if (sizeof(IN) == 4) {
            copy_async<4>(to + 4 * i, from, there);
        } else {
            const unsigned bits = there ? bits_of(*from) : 0;
            kept.words[i / 2] = i % 2 ? kept.words[i / 2] | bits << 16 : bits;
        }
    }
}

template <bool WHOLE>
__device__ __forceinline__ void keep_chunk(unsigned char* to, const Chunk& kept) {
    if (!WHOLE && sizeof(IN) == 2) *(Chunk*)to = kept;
}

// 512 threads on a multiprocessor have 128 registers each, in which only whole 16-bit vectors fit without spilling.
extern "C" __global__ void
__launch_bounds__(THREADS, DENSE_WHOLE && GATHERED_WHOLE && sizeof(IN) == 2 ? 512 / THREADS : 1)
    implicit_gemm_mma(const __grid_constant__ GatheredProduct p) {
    DYNAMIC_SHARED(stages, 16);
    __shared__ Row<PADDING> rows[2][FOUND];

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const Tile tile = tile_of<TILE_M, TILE_N>(blockIdx.x, p);
    const int first_k = tile.first_k, last_k = tile.last_k;
    const IN* const gathered = (const IN*)p.gathered + tile.group * p.gathered_group + p.start;
    const IN* const dense = (const IN*)p.dense + tile.group * p.dense_group;

    // Which chunks this thread fetches: neighbours take chunks of one row, or of the gathered tile by LANES neighbouring rows.
    const int dense_row = thread / CHUNKS, dense_chunk = thread % CHUNKS;
    const int gathered_row = LANES ? thread / CHUNKS : thread % TILE_N;
    const int gathered_chunk = LANES ? thread % CHUNKS : thread / TILE_N;
    const int step_row = LANES ? THREADS / CHUNKS : 0, step_chunk = LANES ? 0 : THREADS / TILE_N;
    Spot<PADDING> columns[LANES ? GATHERED : 1];
    const IN* places[LANES ? GATHERED : 1];
#pragma unroll
    for (int i = 0; i < (LANES ? GATHERED : 1); ++i) {
        const int j = tile.j + gathered_row + i * step_row;
        const Place place = locate(min(j, p.N - 1), p.column);
        find<!TAPS>(columns[i], place, j < p.N, p);
        places[i] = gathered + place.gathered;
    }
    // Rows past the last are a copy of it: nobody stores what comes of them.
    const IN* dense_rows[DENSE];
#pragma unroll
    for (int i = 0; i < DENSE; ++i)
        dense_rows[i] = dense + min(tile.m + dense_row + i * (THREADS / CHUNKS), p.M - 1) * p.dense_row;

    Chunk next_dense[DENSE], next_gathered[GATHERED];
    auto fetch = [&](int step) {
        unsigned char* const stage = stages + step % STAGES * STAGE_BYTES;
        const Row<PADDING>* const found = rows[step / STEPS % 2] + step % STEPS * (TILE_K / PLACED);
        const int k = first_k + step * TILE_K;
#pragma unroll
        for (int i = 0; i < DENSE; ++i) {
            const int row = dense_row + i * (THREADS / CHUNKS);
            fetch_chunk<DENSE_WHOLE>(stage + swizzled(row, dense_chunk), next_dense[i], [&](int at, const IN*& from) {
                const int inner = dense_chunk * VECTOR + at;
                from = dense_rows[i] + found[inner / PLACED].other;
                return k + inner < last_k;
            });
        }
        unsigned char* const gathered_tile = stage + TILE_M * ROW_BYTES;
#pragma unroll
        for (int i = 0; i < GATHERED; ++i) {
            const int row = gathered_row + i * step_row, chunk = gathered_chunk + i * step_chunk;
            fetch_chunk<GATHERED_WHOLE>(gathered_tile + swizzled(row, chunk), next_gathered[i], [&](int at, const IN*& from) {
                Distances<PADDING>::type distance;
                const bool inside = reach(found[(chunk * VECTOR + at) / PLACED], columns[LANES ? i : 0], p, distance);
                from = places[LANES ? i : 0] + distance;
                return inside;
            });
        }
    };
    auto keep = [&](int step) {
        unsigned char* const stage = stages + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < DENSE; ++i)
            keep_chunk<DENSE_WHOLE>(stage + swizzled(dense_row + i * (THREADS / CHUNKS), dense_chunk), next_dense[i]);
#pragma unroll
        for (int i = 0; i < GATHERED; ++i) {
            const int row = gathered_row + i * step_row, chunk = gathered_chunk + i * step_chunk;
            keep_chunk<GATHERED_WHOLE>(stage + TILE_M * ROW_BYTES + swizzled(row, chunk), next_gathered[i]);
        }
    };
    auto find_rows = [&](int batch) {
        if (thread >= FOUND) return;
        const int k = first_k + (batch * FOUND + thread) * PLACED;
        find<TAPS>(rows[batch % 2][thread], locate(k < last_k ? k : 0, p.row), k < last_k, p);
    };
    // Rows of a batch are found when the first step of the one before is fetched: a barrier, or more, lies between.
    auto fetch_next = [&](int step, int steps) {
        if (step < steps) fetch(step);
        close_copies();
        if (step % STEPS == 0) find_rows(step / STEPS + 1);
    };

    const int steps = (last_k - first_k + TILE_K - 1) / TILE_K;
    find_rows(0);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        fetch_next(step, steps);
        if (step < steps) keep(step);
        __syncthreads();
    }

    const int warp_m = warp % 2 * (TILE_M / 2), warp_n = warp / 2 * 32;
    float sums[FRAGMENTS_M][FRAGMENTS_N][4] = {};
    float crossed[SPLIT ? FRAGMENTS_M : 1][FRAGMENTS_N][4] = {};
    // A sum of what crosses that is not finite means that the sum itself is not: it holds the infinity or the NaN, or products
    // 2^10 times as large. It stays what it is then, as Inf - Inf is NaN.
    auto settle = [&] {
#pragma unroll
        for (int i = 0; i < (SPLIT ? FRAGMENTS_M * FRAGMENTS_N * 4 : 0); ++i) {
            float &sum = sums[i / 16][i / 4 % 4][i % 4], &more = crossed[i / 16][i / 4 % 4][i % 4];
            if (is_finite(more)) sum += more;
            more = 0;
        }
    };
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        const int next = step + STAGES - 1;
        fetch_next(next, steps);

        const unsigned char* const dense_tile = stages + step % STAGES * STAGE_BYTES;
        const unsigned char* const gathered_tile = dense_tile + TILE_M * ROW_BYTES;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
            unsigned left[FRAGMENTS_M][4], right[FRAGMENTS_N / 2][4];
            unsigned low_left[FRAGMENTS_M][4], low_right[FRAGMENTS_N / 2][4];
#pragma unroll
            for (int i = 0; i < FRAGMENTS_M; ++i) {
                load_matrices(left[i], dense_tile + swizzled(warp_m + i * 16 + lane % 16, chunk + lane / 16));
                if (SPLIT) split(left[i], low_left[i]);
                else round_words(IN(), left[i]);
            }
#pragma unroll
            for (int j = 0; j < FRAGMENTS_N / 2; ++j) {
                const int row = warp_n + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(right[j], gathered_tile + swizzled(row, chunk + lane / 8 % 2));
                if (SPLIT) split(right[j], low_right[j]);
                else round_words(IN(), right[j]);
            }
#pragma unroll
            for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
                for (int j = 0; j < FRAGMENTS_N; ++j) {
                    const unsigned* const column = right[j / 2] + j % 2 * 2;
                    if (!SPLIT) {
                        multiply(IN(), sums[i][j], left[i], column);
                        continue;
                    }
                    float(&crossing)[4] = crossed[SPLIT ? i : 0][j], products[4] = {};
                    multiply(IN(), crossing, low_left[i], column);
                    multiply(IN(), crossing, left[i], low_right[j / 2] + j % 2 * 2);
                    multiply(IN(), products, left[i], column);
#pragma unroll
                    for (int at = 0; at < 4; ++at) sums[i][j][at] += products[at];
                }
        }
        if (step % SETTLED == SETTLED - 1) settle();
        if (next < steps) keep(next);
    }
    settle();

    OUT* const finished = (OUT*)stages;
    wait_for_copies<0>();
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
        const int first_row = half * (TILE_M / 2);
        __syncthreads();
        if (HALVES == 1 || warp % 2 == half) {
#pragma unroll
            for (int i = 0; i < FRAGMENTS_M * 2; ++i) {
                const int row = warp_m + lane / 4 + i * 8;
                const float addend = addend_of(tile.m + row, tile, p);
                finish(finished + (row - first_row) * PITCH + warp_n + lane % 4 * 2, sums[i / 2], i % 2, addend, p);
            }
        }
        __syncthreads();
        store<TILE_N, PITCH, THREADS>(finished, tile.m + first_row, TILE_M / HALVES, tile, p);
    }
}
