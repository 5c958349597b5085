// The gradient of an input from that of its padded copy: each element collects every padded position that shows it.
//
//   result[n, c, i] = bias[c] + sum over the positions p with source(p) = i of padded[n, c, p]
//
// One element a thread; only the border's positions are looked through, in a fixed order, and there are few. `padded` is
// of type SUM and lies in the workspace.
//
// Compiled in: SUM, OUT, PADDING (gather.cuh, not ZEROS).
#include "gather.cuh"
#include "types.cuh"

struct Padded {
    const void* padded;
    const void* bias;  // of type OUT, or null
    void* result;
    long long padded_stride[2 + AXES], result_stride[2 + AXES];  // n, c, d, h, w
    long long bias_stride;
    long long count;
    int channels;
    int size[AXES], before[AXES], after[AXES];
};

// The next position from `p` on, in a padded axis, that shows element `i`; past the end where there is none.
__device__ __forceinline__ int next_shown(int p, int i, int size, int before, int after) {
    for (; p < size + after; ++p) {
        if (source<PADDING>(p, size) == i) return p;
        if (0 <= p && p < size) p = p < i ? i - 1 : size - 1;  // inside, an element stands at its own place alone
    }
    return p;
}

extern "C" __global__ void __launch_bounds__(256) fold_padding(const __grid_constant__ Padded p) {
    const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
    if (at >= p.count) return;
    int element[AXES];
    long long rest = at;
#pragma unroll
    for (int axis = AXES - 1; axis >= 0; --axis) {
        element[axis] = (int)(rest % p.size[axis]);
        rest /= p.size[axis];
    }
    const int c = (int)(rest % p.channels);
    const long long n = rest / p.channels;
    const SUM* const plane = (const SUM*)p.padded + n * p.padded_stride[0] + c * p.padded_stride[1];
    SUM sum = p.bias ? convert<SUM>(((const OUT*)p.bias)[c * p.bias_stride]) : (SUM)0;
    const int* const size = p.size;
#define EACH(name, axis)                                                                                      \
    for (int name = next_shown(-p.before[axis], element[axis], size[axis], p.before[axis], p.after[axis]);    \
         name < size[axis] + p.after[axis];                                                                   \
         name = next_shown(name + 1, element[axis], size[axis], p.before[axis], p.after[axis]))
    EACH(d, 0) EACH(h, 1) EACH(w, 2)
        sum += plane[(d + p.before[0]) * p.padded_stride[2] + (h + p.before[1]) * p.padded_stride[3] +
                     (w + p.before[2]) * p.padded_stride[4]];
#undef EACH
    long long to = n * p.result_stride[0] + c * p.result_stride[1];
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) to += element[axis] * p.result_stride[2 + axis];
    ((OUT*)p.result)[to] = convert<OUT>(sum);
}
