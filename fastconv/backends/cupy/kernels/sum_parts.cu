// Partial sums in a fixed order: result[m, j] = bias[m] + sum_s parts[s, m, j], one element a thread.
//
// The parts lie one after the other, each (groups, M, N) in C order and of type PART; the result lies anywhere. No
// atomics, so the bits are the same each time.
//
// Compiled in: SUM, OUT, and PART where it is not SUM.
#include "geometry.cuh"
#include "types.cuh"

#ifndef PART
#define PART SUM
#endif

struct PartialSums {
    const void* parts;
    const void* bias;  // of type OUT, or null
    void* result;
    long long count;        // elements of one part
    long long result_row, result_group, bias_row, bias_group;
    int number;             // of parts
    int M, N;
    Divisor rows, columns;  // M and N
    Digit column[DIGITS];
};

extern "C" __global__ void __launch_bounds__(256) sum_parts(const __grid_constant__ PartialSums p) {
    const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
    if (at >= p.count) return;
    // Dividing 64 bits takes longer than everything else.
    const bool few = p.count <= 0x7fffffff;
    const long long row = few ? divide((int)at, p.columns) : at / p.N;
    const int j = (int)(at - row * p.N);
    const long long group = few ? divide((int)row, p.rows) : row / p.M, m = row - group * p.M;
    const PART* const parts = (const PART*)p.parts;
    SUM sum = p.bias ? convert<SUM>(((const OUT*)p.bias)[group * p.bias_group + m * p.bias_row]) : (SUM)0;
    for (int s = 0; s < p.number; ++s) sum += convert<SUM>(parts[s * p.count + at]);
    const long long to = group * p.result_group + m * p.result_row + locate(j, p.column).other;
    ((OUT*)p.result)[to] = convert<OUT>(sum);
}
