// The gradient of an input from that of its padded copy: each element collects every padded position that shows it.
//
//   result[n, c, i] = bias[c] + sum over the positions p with source(p) = i of padded[n, c, p]
//
// One element a thread, in a fixed order. `padded` is of type SUM and lies in the workspace.
//
// Compiled in: SUM, OUT, PADDING (gather.cuh).
#include "elements.cuh"
#include "shown.cuh"
#include "types.cuh"

struct Padded {
    const void* padded;
    const void* bias;  // of type OUT, or null
    void* result;
    long long padded_stride[2 + AXES], result_stride[2 + AXES];  // n, c, d, h, w
    long long bias_stride;
    int count;
    int size[AXES], before[AXES], after[AXES];
    Box box;  // of the result
};

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) fold_padding(const __grid_constant__ Padded p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = element(number, p.box);
    const SUM* const padded = (const SUM*)p.padded + plane(e, p.padded_stride);
    SUM sum = p.bias ? convert<SUM>(((const OUT*)p.bias)[e.c * p.bias_stride]) : (SUM)0;
    EACH_SHOWN(d, 0, e.at, p) EACH_SHOWN(h, 1, e.at, p) EACH_SHOWN(w, 2, e.at, p)
        sum += padded[(d + p.before[0]) * p.padded_stride[2] + (h + p.before[1]) * p.padded_stride[3] +
                      (w + p.before[2]) * p.padded_stride[4]];
    ((OUT*)p.result)[distance(e, p.result_stride)] = convert<OUT>(sum);
}
