// im2col and its adjoint, one element of the result a thread.
//
// unfold   columns[n, (c, k), q] = x[n, c, source(q * stride + k * dilation - before)]
// fold     image[n, c, i] = sum over the positions p that show i, and over the k, q that meet in p, of columns[n, (c, k), q]
//
// Compiled in: IN, SUM, OUT, PADDING (gather.cuh), FOLD (0 or 1).
#include "elements.cuh"
#include "gather.cuh"
#include "shown.cuh"
#include "types.cuh"

struct Columns {
    const void* from;
    void* to;
    long long image_stride[2 + AXES];    // n, c, d, h, w
    long long columns_stride[3];         // n, (c, k), q
    int count;                           // elements of the result
    int size[AXES], out[AXES], kernel[AXES], stride[AXES], dilation[AXES], before[AXES], after[AXES];
    Divisor positions;                   // unfold: all of q
    Divisor taps;                        // unfold: all of k
    Divisor q[AXES], k[AXES];            // unfold: their digits
    Box box;                             // of the image; unfold: its channels
};

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) unfold(const __grid_constant__ Columns p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
#if FOLD
    const Element e = element(number, p.box);
    const IN* const columns = (const IN*)p.from + e.n * p.columns_stride[0];
    const int taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    SUM sum = 0;
    // The output position that a padded position and a kernel element meet in; -1 where there is none.
    auto meeting = [&](int axis, int position, int k) {
        const int from = position + p.before[axis] - k * p.dilation[axis];
        return from >= 0 && from % p.stride[axis] == 0 && from / p.stride[axis] < p.out[axis] ? from / p.stride[axis] : -1;
    };
    EACH_SHOWN(d, 0, e.at, p) EACH_SHOWN(h, 1, e.at, p) EACH_SHOWN(w, 2, e.at, p)
    for (int kd = 0; kd < p.kernel[0]; ++kd) {
        const int od = meeting(0, d, kd);
        if (od < 0) continue;
        for (int kh = 0; kh < p.kernel[1]; ++kh) {
            const int oh = meeting(1, h, kh);
            if (oh < 0) continue;
            for (int kw = 0; kw < p.kernel[2]; ++kw) {
                const int ow = meeting(2, w, kw);
                if (ow < 0) continue;
                const long long row = (long long)e.c * taps + (kd * p.kernel[1] + kh) * p.kernel[2] + kw;
                const long long column = ((long long)od * p.out[1] + oh) * p.out[2] + ow;
                sum += convert<SUM>(columns[row * p.columns_stride[1] + column * p.columns_stride[2]]);
            }
        }
    }
    ((OUT*)p.to)[distance(e, p.image_stride)] = convert<OUT>(sum);
#else
    const int row = divide(number, p.positions);
    int column = number - row * (int)p.positions.divisor;
    const int planes = divide(row, p.taps);
    int tap = row - planes * (int)p.taps.divisor;
    const int n = divide(planes, p.box.channels), c = planes - n * (int)p.box.channels.divisor;
    long long to = n * p.columns_stride[0];
    to += (row - (long long)n * (int)p.box.channels.divisor * (int)p.taps.divisor) * p.columns_stride[1];
    to += column * p.columns_stride[2];
    long long from = n * p.image_stride[0] + c * p.image_stride[1];
    bool inside = true;
#pragma unroll
    for (int axis = AXES - 1; axis >= 0; --axis) {
        const int q = divide(column, p.q[axis]), k = divide(tap, p.k[axis]);
        const int position = (column - q * (int)p.q[axis].divisor) * p.stride[axis] +
                             (tap - k * (int)p.k[axis].divisor) * p.dilation[axis] - p.before[axis];
        const int at = source<PADDING>(position, p.size[axis]);
        inside = inside && at >= 0;
        from += at * p.image_stride[2 + axis];
        column = q, tap = k;
    }
    OUT value = {};
    if (inside) value = convert<OUT>(((const IN*)p.from)[from]);
    ((OUT*)p.to)[to] = value;
#endif
}
