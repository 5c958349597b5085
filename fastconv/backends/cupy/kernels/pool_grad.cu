// The gradient of pooling as a gather: each input element asks the windows that hold it, in order; no atomics.
//
//   max   sum of dy over the windows whose index is this element (`other`: int64 indices)
//   avg   sum of dy / divisor
//   lp    sum of dy * scale * sign(x) * (|x| / y)^(p-1), 0 where y or x is 0 (`other`: y, of type SUM)
//
// Compiled in: IN (of x), GRAD (of dy), SUM, OUT, MODE, EVEN (all windows divide by `divisor`), and one of two ways:
//
//   KERNEL_H, KERNEL_W, STEP_H, STEP_W, STRIP, ADJACENT   small windows of two axes: a thread makes the elements of one
//       column where STRIP windows below each other begin, STRIP * STEP_H of them, and a window read once serves all of
//       them. ADJACENT: windows of a row are neighbours in memory.
//   WINDOWS   any windows, one element a thread.
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
    double norm, inverse;  // the p of lp; 1 / divisor
    int count;  // threads with work
    int divisor, kernel, include_pad;
    Box box;  // of the result, or of strips
    Window axis[AXES];
};

// One window: its dy, divided where that is an average's; and who won it, or its norm.
struct Held { SUM dy; int winner; SUM norm; };

// A window read. `kept` says how many elements it has, and what its average divides by; one that is not `there` sends nothing.
template <typename Kept>
__device__ __forceinline__ Held held(const PoolGradient& p, const GRAD* grad, const void* other, bool there, Kept kept) {
    Held found = {there ? convert<SUM>(*grad) : (SUM)0, -1, 0};
#if MODE == MAX
    const long long winner = there ? *(const long long*)other : -1;
    found.winner = winner == (int)winner ? (int)winner : -1;
#elif MODE == AVG
    found.dy = EVEN ? quotient(found.dy, (SUM)p.divisor, (SUM)p.inverse) : found.dy / (SUM)kept(p.include_pad);
#else
    found.norm = there ? *(const SUM*)other : (SUM)0;
    found.dy *= (SUM)p.kernel / (SUM)kept(false);
#endif
    return found;
}
#if MODE == MAX
typedef long long OTHER;
#else
typedef SUM OTHER;
#endif

// What a window sends to the element at `flat` of its plane, whose value is `x`.
__device__ __forceinline__ void add(SUM& sum, const PoolGradient& p, const Held& window, int flat, SUM x) {
#if MODE == MAX
    if (window.winner == flat) sum += window.dy;
#elif MODE == AVG
    sum += window.dy;
#else
    const SUM size = x < 0 ? -x : x;
    if (window.norm == 0 || size == 0) return;
    const SUM ratio = size / window.norm;
    const SUM slope = p.norm == 1 ? (SUM)1 : p.norm == 2 ? ratio : power(ratio, (SUM)(p.norm - 1));
    sum += window.dy * (x < 0 ? -slope : slope);
#endif
}

#if KERNEL_H
#define ELEMENTS (STRIP * STEP_H)
// Windows that meet in one element, at most.
#define MEET_H ((KERNEL_H + STEP_H - 1) / STEP_H)
#define MEET_W ((KERNEL_W + STEP_W - 1) / STEP_W)

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) pool_grad(const __grid_constant__ PoolGradient p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = strip_of(number, p.box);
    const Window &rows = p.axis[1], &columns = p.axis[2];
    // The strip's first window begins in row `top`, and the last window that holds column w is `last`, by its tap `tap`.
    const int first = rows.before / STEP_H + e.at[1] * STRIP, top = first * STEP_H - rows.before;
    const int w = e.at[2], last = (w + columns.before) / STEP_W, tap = w + columns.before - last * STEP_W;
    const int grad_step = ADJACENT ? 1 : (int)p.grad_stride[4], other_step = ADJACENT ? 1 : (int)p.other_stride[4];
    const GRAD* const grad = (const GRAD*)p.grad + near_plane(e, p.grad_stride) + last * grad_step;
    const OTHER* const other = (const OTHER*)p.other + near_plane(e, p.other_stride) + last * other_step;
    SUM sums[ELEMENTS] = {}, values[ELEMENTS] = {};
#if MODE == LP
    const IN* const x = (const IN*)p.x + near_plane(e, p.x_stride) + w * (int)p.x_stride[4];
#pragma unroll
    for (int m = 0; m < ELEMENTS; ++m) values[m] = convert<SUM>(*at(x, max(min(top + m, rows.size - 1), 0), p.x_stride[3]));
#endif
#pragma unroll
    for (int i = 1 - MEET_H; i < STRIP; ++i) {
        const int h = first + i;
        const GRAD* const grad_row = at(grad, h, p.grad_stride[3]);
        const OTHER* const other_row = at(other, h, p.other_stride[3]);
#pragma unroll
        for (int k = 1 - MEET_W; k <= 0; ++k) {
            const int v = last + k;
            const bool there =
                (unsigned)h < (unsigned)rows.out && (unsigned)v < (unsigned)columns.out && tap - k * STEP_W < KERNEL_W;
            const Held window = held(p, grad_row + k * grad_step, other_row + k * other_step, there, [&](bool include_pad) {
                return max(counted<DENSE>(rows, h, include_pad) * counted<DENSE>(columns, v, include_pad), 1);
            });
#pragma unroll
            for (int m = 0; m < ELEMENTS; ++m)
                if (m - i * STEP_H >= 0 && m - i * STEP_H < KERNEL_H)
                    add(sums[m], p, window, (top + m) * columns.size + w, values[m]);
        }
    }
    OUT* result = at((OUT*)p.result + near_plane(e, p.result_stride) + w * (int)p.result_stride[4], top, p.result_stride[3]);
#pragma unroll
    for (int m = 0; m < ELEMENTS; ++m) {
        if ((unsigned)(top + m) < (unsigned)rows.size) *result = convert<OUT>(sums[m]);
        result += p.result_stride[3];
    }
}

#else
extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) pool_grad(const __grid_constant__ PoolGradient p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = element(number, p.box);
    const GRAD* const grad = (const GRAD*)p.grad + plane(e, p.grad_stride);
    const OTHER* const other = (const OTHER*)p.other + plane(e, p.other_stride);
    const int flat = (e.at[0] * p.axis[1].size + e.at[1]) * p.axis[2].size + e.at[2];
#if MODE == LP
    const SUM value = convert<SUM>(((const IN*)p.x)[distance(e, p.x_stride)]);
#else
    const SUM value = 0;
#endif
    const Range d = holders<WINDOWS>(p.axis[0], e.at[0]), h = holders<WINDOWS>(p.axis[1], e.at[1]),
                w = holders<WINDOWS>(p.axis[2], e.at[2]);
    SUM sum = 0;
    for (int i = d.begin; i < d.end; ++i) {
        if (!holds<WINDOWS>(p.axis[0], i, e.at[0])) continue;
        for (int j = h.begin; j < h.end; ++j) {
            if (!holds<WINDOWS>(p.axis[1], j, e.at[1])) continue;
            const GRAD* const grad_row = grad + i * p.grad_stride[2] + j * p.grad_stride[3];
            const OTHER* const other_row = other + i * p.other_stride[2] + j * p.other_stride[3];
            for (int k = w.begin; k < w.end; ++k) {
                if (!holds<WINDOWS>(p.axis[2], k, e.at[2])) continue;
                const auto kept = [&](bool include_pad) {
                    return (long long)counted<WINDOWS>(p.axis[0], i, include_pad) *
                           counted<WINDOWS>(p.axis[1], j, include_pad) * counted<WINDOWS>(p.axis[2], k, include_pad);
                };
                const GRAD* const dy = grad_row + k * p.grad_stride[4];
                add(sum, p, held(p, dy, other_row + k * p.other_stride[4], true, kept), flat, value);
            }
        }
    }
    ((OUT*)p.result)[distance(e, p.result_stride)] = convert<OUT>(sum);
}
#endif
