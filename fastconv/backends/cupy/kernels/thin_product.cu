// The product of implicit_gemm.cu where one group has few rows and columns and k is long: depthwise weight gradients.
//
//   result[m, j] = sum_k dense[m, k] * gathered[place(k) + place(j)]
//
// A tile of an ordinary product would be almost empty. A block takes one m and COLUMNS of j, and one part of k; its
// threads take every 256th k, read the dense operand once for all columns, and add up in a tree whose order is fixed.
// tiles_m of the struct counts m, tiles_n groups of columns. There is no bias.
//
// Compiled in: IN, SUM, OUT, COLUMNS, PADDING, TAPS (implicit_gemm.cu).
#include "product.cuh"
#include "types.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)

extern "C" __global__ void __launch_bounds__(THREADS) thin_product(const __grid_constant__ GatheredProduct p) {
    __shared__ Spot<PADDING> columns[COLUMNS];
    __shared__ Place places[COLUMNS];
    __shared__ SUM of_warps[COLUMNS][WARPS];

    const int thread = threadIdx.x;
    int block = blockIdx.x;
    int rest = divide(block, p.tiles_m);
    const int m = block - rest * (int)p.tiles_m.divisor;
    block = rest, rest = divide(block, p.tiles_n);
    const int first_j = (block - rest * (int)p.tiles_n.divisor) * COLUMNS;
    block = rest;
    const int group = divide(block, p.parts);
    const int part = block - group * (int)p.parts.divisor;
    const int first_k = part * p.part, last_k = min(first_k + p.part, p.K);
    const IN* const gathered = (const IN*)p.gathered + group * p.gathered_group + p.start;
    const IN* const dense = (const IN*)p.dense + group * p.dense_group + m * p.dense_row;

    if (thread < COLUMNS) {
        places[thread] = locate(min(first_j + thread, p.N - 1), p.column);
        find<!TAPS>(columns[thread], places[thread], true, p);
    }
    __syncthreads();

    SUM sums[COLUMNS] = {};
    for (int k = first_k + thread; k < last_k; k += THREADS) {
        Row<PADDING> row;
        find<TAPS>(row, locate(k, p.row), true, p);
        const SUM factor = convert<SUM>(dense[row.other]);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            Distances<PADDING>::type distance;
            if (reach(row, columns[j], p, distance))
                sums[j] += factor * convert<SUM>(gathered[places[j].gathered + distance]);
            else
                sums[j] += factor * (SUM)0;  // 0 times an infinity is a NaN here too
        }
    }

#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int step = 16; step; step /= 2) sums[j] += __shfl_down_sync(0xffffffffu, sums[j], step);
        if (thread % 32 == 0) of_warps[j][thread / 32] = sums[j];
    }
    __syncthreads();
    if (thread < COLUMNS && first_j + thread < p.N) {
        SUM sum = of_warps[thread][0];
#pragma unroll
        for (int warp = 1; warp < WARPS; ++warp) sum += of_warps[thread][warp];
        OUT* const result = (OUT*)p.result + group * p.result_group + part * p.result_split;
        result[m * p.result_row + places[thread].other] = convert<OUT>(sum);
    }
}
