// Pooling: every window of every plane becomes one number, one output element a thread.
//
//   max   the first of the largest, a NaN above everything (the last NaN of several); its flat position on request
//   avg   sum / divisor
//   lp    (scale * sum |x|^p)^(1/p), scale = elements of the kernel / elements the window kept
//
// Compiled in: IN, SUM, OUT, MODE. `y` and `indices` may each be null.
#include "types.cuh"
#include "windows.cuh"

#define MAX 0
#define AVG 1
#define LP 2

struct Pool {
    const void* x;
    void* y;
    void* indices;  // int64
    long long x_stride[2 + AXES], y_stride[2 + AXES], indices_stride[2 + AXES];  // n, c, d, h, w
    double norm;                                                                // the p of lp
    int count;                                                                  // elements of y
    int divisor;      // of avg; 0: the window's length
    int kernel;       // elements of the kernel
    int include_pad;  // whether padding counts in a window's length
    Box box;          // of y
    Window axis[AXES];
};

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) pool(const __grid_constant__ Pool p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = element(number, p.box);
    const IN* const x = (const IN*)p.x + plane(e, p.x_stride);
    const Range d = window(p.axis[0], e.at[0]), h = window(p.axis[1], e.at[1]), w = window(p.axis[2], e.at[2]);
    const int kept = length(d) * length(h) * length(w);

#if MODE == MAX
    IN best = x[d.begin * p.x_stride[2] + h.begin * p.x_stride[3] + w.begin * p.x_stride[4]];
    SUM largest = convert<SUM>(best);
    int at[AXES] = {d.begin, h.begin, w.begin};
#else
    SUM sum = 0;
#endif
    for (int i = d.begin; i < d.end; i += d.step)
        for (int j = h.begin; j < h.end; j += h.step)
            for (int k = w.begin; k < w.end; k += w.step) {
                const IN element = x[i * p.x_stride[2] + j * p.x_stride[3] + k * p.x_stride[4]];
                const SUM value = convert<SUM>(element);
#if MODE == MAX
                if (value > largest || value != value) {
                    best = element, largest = value;
                    at[0] = i, at[1] = j, at[2] = k;
                }
#elif MODE == AVG
                sum += value;
#else
                const SUM size = value < 0 ? -value : value;
                sum += p.norm == 1 ? size : p.norm == 2 ? size * size : power(size, (SUM)p.norm);
#endif
            }

#if MODE == MAX
    if (p.y) ((OUT*)p.y)[distance(e, p.y_stride)] = convert<OUT>(best);
    if (p.indices) {
        const long long flat = ((long long)at[0] * p.axis[1].size + at[1]) * p.axis[2].size + at[2];
        ((long long*)p.indices)[distance(e, p.indices_stride)] = flat;
    }
#elif MODE == AVG
    SUM divisor = (SUM)p.divisor;
    if (!p.divisor) {
        divisor = (SUM)kept;
        if (p.include_pad) {
            divisor = (SUM)((long long)padded_length(p.axis[0], e.at[0]) * padded_length(p.axis[1], e.at[1]) *
                            padded_length(p.axis[2], e.at[2]));
        }
    }
    ((OUT*)p.y)[distance(e, p.y_stride)] = convert<OUT>(sum / divisor);
#else
    sum *= (SUM)p.kernel / (SUM)kept;
    sum = p.norm == 1 ? sum : p.norm == 2 ? root(sum) : power(sum, (SUM)(1 / p.norm));
    ((OUT*)p.y)[distance(e, p.y_stride)] = convert<OUT>(sum);
#endif
}
