// A weight with its channels last, as images of that layout want it: result[row, tap, c] = weight[row, c, tap], one
// element a thread, rows being out channels.
//
// Compiled in: IN.
#include "geometry.cuh"
#include "types.cuh"

struct PackedWeight {
    const void* weight;
    void* result;
    int count;  // elements
    Divisor channels, taps;
};

extern "C" __global__ void __launch_bounds__(256) pack_weight(const __grid_constant__ PackedWeight p) {
    const long long number = (long long)blockIdx.x * 256 + threadIdx.x;
    if (number >= p.count) return;
    const int at = (int)number;
    const int row_tap = divide(at, p.channels), c = at - row_tap * (int)p.channels.divisor;
    const int row = divide(row_tap, p.taps), tap = row_tap - row * (int)p.taps.divisor;
    const long long from = ((long long)row * p.channels.divisor + c) * p.taps.divisor + tap;
    ((IN*)p.result)[at] = ((const IN*)p.weight)[from];
}
