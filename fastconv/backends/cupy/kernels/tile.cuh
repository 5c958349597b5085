// The tile of a product that one block makes on tensor cores: which it is, and how its sums reach the result.
//
// The finished tile goes through shared memory, so that neighbouring threads store neighbouring columns, 16 bytes each where
// the result lies so. OUT is what the result is stored as.
#pragma once
#include "product.cuh"
#include "types.cuh"

struct __align__(16) Chunk { unsigned words[4]; };
struct __align__(8) Half { unsigned words[2]; };
struct __align__(2 * sizeof(OUT)) Pair { OUT of[2]; };

// Where it begins in m and j, its group, and the part of k that is summed.
struct Tile {
    int m, j, group, part, first_k, last_k;
};

template <int ROWS, int COLUMNS>
__device__ __forceinline__ Tile tile_of(int block, const GatheredProduct& p) {
    Tile tile;
    int rest = divide(block, p.tiles_m);
    tile.m = (block - rest * (int)p.tiles_m.divisor) * ROWS;
    block = rest, rest = divide(block, p.tiles_n);
    tile.j = (block - rest * (int)p.tiles_n.divisor) * COLUMNS;
    tile.group = divide(rest, p.parts);
    tile.part = rest - tile.group * (int)p.parts.divisor;
    tile.first_k = tile.part * p.part;
    tile.last_k = min(tile.first_k + p.part, p.K);
    return tile;
}

__device__ __forceinline__ OUT* result_of(const Tile& tile, const GatheredProduct& p) {
    return (OUT*)p.result + tile.group * p.result_group + tile.part * p.result_split;
}

// What is added to a row's sums.
__device__ __forceinline__ float addend_of(int m, const Tile& tile, const GatheredProduct& p) {
    const OUT* const bias = (const OUT*)p.bias + tile.group * p.bias_group;
    return p.bias && m < p.M ? convert<float>(bias[m * p.bias_row]) : 0;
}

// Two neighbours of each fragment of 8 columns, the lower or the upper of its rows.
template <int FRAGMENTS>
__device__ __forceinline__ void finish(OUT* to, const float (&sums)[FRAGMENTS][4], int upper, float addend,
                                       const GatheredProduct& p) {
#pragma unroll
    for (int j = 0; j < FRAGMENTS; ++j) {
        Pair pair;
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
            const float sum = sums[j][upper * 2 + odd];
            pair.of[odd] = convert<OUT>(p.bias ? sum + addend : sum);
        }
        *(Pair*)(to + j * 8) = pair;
    }
}

// A thread stores the same columns of every so many-th row.
template <typename Vector, int COLUMNS, int PITCH, int THREADS>
__device__ __forceinline__ void store_vectors(const OUT* finished, int first_m, int rows, const Tile& tile,
                                              const GatheredProduct& p) {
    const int count = sizeof(Vector) / sizeof(OUT), across = COLUMNS / count;
    const int at = threadIdx.x % across * count, column = tile.j + at;
    if (column >= p.N) return;
    OUT* const to = result_of(tile, p) + locate(column, p.column).other;
    for (int row = threadIdx.x / across; row < rows; row += THREADS / across) {
        const int m = first_m + row;
        if (m >= p.M) return;
        *(Vector*)(to + m * p.result_row) = *(const Vector*)(finished + row * PITCH + at);
    }
}
template <int COLUMNS, int PITCH, int THREADS>
__device__ __forceinline__ void store(const OUT* finished, int first_m, int rows, const Tile& tile,
                                      const GatheredProduct& p) {
    if (p.vector * sizeof(OUT) == 16) store_vectors<Chunk, COLUMNS, PITCH, THREADS>(finished, first_m, rows, tile, p);
    else if (p.vector * sizeof(OUT) == 8) store_vectors<Half, COLUMNS, PITCH, THREADS>(finished, first_m, rows, tile, p);
    else store_vectors<OUT, COLUMNS, PITCH, THREADS>(finished, first_m, rows, tile, p);
}
