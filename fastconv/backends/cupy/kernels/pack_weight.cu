// A weight with the channels that are summed last, as images of that layout want it, one element a thread:
// result[group, row, tap, channel]. Forward, rows are out channels and the channels those of the input; the gradient of
// the input has it the other way round.
//
// Compiled in: IN.
#include "geometry.cuh"
#include "types.cuh"

struct PackedWeight {
    const void* weight;
    void* result;
    long long group, row, channel;  // elements of the weight from one to the next; a tap is one
    int count;                      // elements
    Divisor channels, taps, rows;
};

extern "C" __global__ void __launch_bounds__(256) pack_weight(const __grid_constant__ PackedWeight p) {
    const long long number = (long long)blockIdx.x * 256 + threadIdx.x;
    if (number >= p.count) return;
    const int at = (int)number;
    const int row_tap = divide(at, p.channels), channel = at - row_tap * (int)p.channels.divisor;
    const int group_row = divide(row_tap, p.taps), tap = row_tap - group_row * (int)p.taps.divisor;
    const int group = divide(group_row, p.rows), row = group_row - group * (int)p.rows.divisor;
    const long long from = group * p.group + row * p.row + channel * p.channel + tap;
    ((IN*)p.result)[at] = ((const IN*)p.weight)[from];
}
