// A weight in the order a product sums it, so that neighbours in k are neighbours in memory: result[group, row, outer, inner],
// 16 bytes a thread where an inner run is a multiple of them, else one element: finding its place takes longest. Forward, rows are out channels and the channels those of the input; the gradient of
// the input has it the other way round. Where images have their channels last, channels are inner and taps outer.
//
// Compiled in: IN.
#include "geometry.cuh"
#include "types.cuh"

struct PackedWeight {
    const void* weight;
    void* result;
    long long group, row, outer, inner;  // elements of the weight from one to the next
    int count;                           // elements
    int vector;                          // of them that one thread writes: VECTOR or 1
    Divisor rows, outers, inners;
};

#define VECTOR (16 / (int)sizeof(IN))

struct __align__(16) Vector { IN numbers[VECTOR]; };

extern "C" __global__ void __launch_bounds__(256) pack_weight(const __grid_constant__ PackedWeight p) {
    const long long number = ((long long)blockIdx.x * 256 + threadIdx.x) * p.vector;
    if (number >= p.count) return;
    const int at = (int)number;
    const int rest = divide(at, p.inners);
    const int inner = at - rest * (int)p.inners.divisor;
    const int group_row = divide(rest, p.outers), outer = rest - group_row * (int)p.outers.divisor;
    const int group = divide(group_row, p.rows), row = group_row - group * (int)p.rows.divisor;
    const IN* const from = (const IN*)p.weight + group * p.group + row * p.row + outer * p.outer + inner * p.inner;
    IN* const to = (IN*)p.result + at;
    if (p.vector == 1) {
        *to = *from;
        return;
    }
    Vector packed;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) packed.numbers[i] = from[i * p.inner];
    *(Vector*)to = packed;
}
