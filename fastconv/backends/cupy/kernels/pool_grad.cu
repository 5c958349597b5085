// The gradient of pooling as a gather: each input element asks the windows that hold it, in order; no atomics.
//
//   max   sum of dy over the windows whose index is this element (`other`: int64 indices)
//   avg   sum of dy / divisor
//   lp    sum of dy * scale * sign(x) * (|x| / y)^(p-1), 0 where y or x is 0 (`other`: y, of type SUM)
//
// Compiled in: IN (of x), GRAD (of dy), SUM, OUT, MODE.
#include "types.cuh"
#include "windows.cuh"

#define MAX 0
#define AVG 1
#define LP 2

struct PoolGradient {
    const void* grad;
    const void* x;      // lp
    const void* other;  // max: indices; lp: y
    void* result;
    long long grad_stride[2 + AXES], x_stride[2 + AXES], other_stride[2 + AXES], result_stride[2 + AXES];
    double norm;
    int count;  // elements of the result
    int divisor, kernel, include_pad;
    Box box;  // of the result
    Window axis[AXES];
};

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) pool_grad(const __grid_constant__ PoolGradient p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = element(number, p.box);
    const GRAD* const grad = (const GRAD*)p.grad + plane(e, p.grad_stride);
    const Range d = holders(p.axis[0], e.at[0]), h = holders(p.axis[1], e.at[1]), w = holders(p.axis[2], e.at[2]);
#if MODE == MAX
    const long long* const indices = (const long long*)p.other + plane(e, p.other_stride);
    const long long flat = ((long long)e.at[0] * p.axis[1].size + e.at[1]) * p.axis[2].size + e.at[2];
#elif MODE == LP
    const SUM* const norms = (const SUM*)p.other + plane(e, p.other_stride);
    const SUM value = convert<SUM>(((const IN*)p.x)[distance(e, p.x_stride)]);
    const SUM size = value < 0 ? -value : value;
#endif
    SUM sum = 0;
    for (int i = d.begin; i < d.end; ++i) {
        if (!holds(p.axis[0], i, e.at[0])) continue;
        for (int j = h.begin; j < h.end; ++j) {
            if (!holds(p.axis[1], j, e.at[1])) continue;
            for (int k = w.begin; k < w.end; ++k) {
                if (!holds(p.axis[2], k, e.at[2])) continue;
                const SUM dy = convert<SUM>(grad[i * p.grad_stride[2] + j * p.grad_stride[3] + k * p.grad_stride[4]]);
#if MODE == MAX
                if (indices[i * p.other_stride[2] + j * p.other_stride[3] + k * p.other_stride[4]] == flat) sum += dy;
#else
                const int kept = length(window(p.axis[0], i)) * length(window(p.axis[1], j)) * length(window(p.axis[2], k));
#if MODE == AVG
                SUM divisor = (SUM)p.divisor;
                if (!p.divisor) {
                    divisor = (SUM)kept;
                    if (p.include_pad) {
                        divisor = (SUM)((long long)padded_length(p.axis[0], i) * padded_length(p.axis[1], j) *
                                        padded_length(p.axis[2], k));
                    }
                }
                sum += dy / divisor;
#else
                const SUM y = norms[i * p.other_stride[2] + j * p.other_stride[3] + k * p.other_stride[4]];
                const SUM scale = (SUM)p.kernel / (SUM)kept;
                if (y != 0 && size != 0) {
                    const SUM slope = p.norm == 1 ? (SUM)1 : p.norm == 2 ? size / y : power(size / y, (SUM)(p.norm - 1));
                    sum += dy * (value < 0 ? -slope : slope) * scale;
                }
#endif
#endif
            }
        }
    }
    ((OUT*)p.result)[distance(e, p.result_stride)] = convert<OUT>(sum);
}
