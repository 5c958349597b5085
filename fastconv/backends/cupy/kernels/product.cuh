// The product that implicit_gemm.cu and thin_product.cu compute, each for its shapes.
#pragma once
#include "gather.cuh"

struct GatheredProduct {
    const void* gathered;
    const void* dense;
    const void* bias;  // of type OUT, or null
    void* result;
    long long dense_row, result_row, bias_row;  // elements from one m to the next
    long long gathered_group, dense_group, result_group, bias_group;
    long long result_split;           // elements from one part of k's sums to the next
    long long start;                  // of the gathered array: where position `origin` lies
    long long axis_stride[AXES];      // of the gathered array, for PADDING other than ZEROS
    int origin[AXES];                 // position of k = 0, j = 0
    int size[AXES];                   // positions of the gathered array
    int M, N, K;
    int part;                         // of k that one block sums, a multiple of TILE_K
    Divisor tiles_m, tiles_n, parts;  // digits of the block's number, the group being what is left
    Digit row[DIGITS], column[DIGITS];
};
