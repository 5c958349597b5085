// Pooling: every window of every plane becomes one number.
//
//   max   the first of the largest, a NaN above everything (the last NaN of several); its flat position on request
//   avg   sum / divisor
//   lp    (scale * sum |x|^p)^(1/p), scale = elements of the kernel / elements the window kept
//
// Compiled in: IN, SUM, OUT, MODE, INDICES (whether positions are asked for; `y` may be null then), EVEN (all windows divide
// by `divisor`), and one of two ways:
//
//   KERNEL_H, KERNEL_W, STEP_H, STEP_W, STRIP, ADJACENT, TRANSPOSED   small windows of two axes: a thread makes STRIP
//       outputs below each other, and a row read once serves all of them. Neighbouring threads make neighbouring columns,
//       which are neighbours in x too where they are ADJACENT; or, TRANSPOSED, they read neighbouring channels, and results
//       turn round in shared memory.
//   WINDOWS, GROUP, LOADS   any windows: GROUP neighbouring threads make one output, which they share along w; each has
//       LOADS loads under way at once.
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
    double norm;     // the p of lp
    double inverse;  // 1 / divisor
    int count;        // threads with work; TRANSPOSED: strips of a plane
    int channels;     // TRANSPOSED
    int divisor;      // EVEN
    int kernel;       // elements of the kernel
    int include_pad;  // whether padding counts in a window's length
    Box box;          // of y, or of strips; TRANSPOSED: tiles of channels, tiles of strips (as h), columns
    Window axis[AXES];
};

// Some elements reduced, and how those that come later join them.
#if MODE == MAX
struct Reduced { SUM value; IN element; int at; };
__device__ __forceinline__ Reduced reduced(const Pool& p, IN element, int at) {
    const Reduced one = {convert<SUM>(element), element, at};
    return one;
}
__device__ __forceinline__ void join(Reduced& all, const Reduced& later) {
    if (later.value > all.value || later.value != later.value) all = later;
}
#define NOTHING lowest<SUM>()
#else
struct Reduced { SUM value; };
__device__ __forceinline__ Reduced reduced(const Pool& p, IN element, int) {
    const SUM value = convert<SUM>(element);
    const SUM size = value < 0 ? -value : value;
    const Reduced one = {MODE == AVG ? value : p.norm == 1 ? size : p.norm == 2 ? size * size : power(size, (SUM)p.norm)};
    return one;
}
__device__ __forceinline__ void join(Reduced& all, const Reduced& later) { all.value += later.value; }
#define NOTHING ((SUM)0)
#endif

// The output of a window that is reduced; `kept` says how many elements it has, and what its average divides by.
template <typename Kept>
__device__ __forceinline__ OUT finished(const Pool& p, const Reduced& all, Kept kept) {
#if MODE == MAX
    return convert<OUT>(all.element);
#elif MODE == AVG
    return convert<OUT>(EVEN ? quotient(all.value, (SUM)p.divisor, (SUM)p.inverse) : all.value / (SUM)kept(p.include_pad));
#else
    const SUM sum = all.value * ((SUM)p.kernel / (SUM)kept(false));
    return convert<OUT>(p.norm == 1 ? sum : p.norm == 2 ? root(sum) : power(sum, (SUM)(1 / p.norm)));
#endif
}

#if KERNEL_H
#define ROWS ((STRIP - 1) * STEP_H + KERNEL_H)

// The STRIP windows below each other from output row `first` of a column on.
//
// A row outside of the input is moved to the nearest inside, which every window that reaches out holds too: met twice it
// leaves a maximum and its place as they are, and sums leave it out. A column outside counts as nothing, at the nearest
// place inside. So no load waits for a branch, and a row's are one address and a few bits apart.
__device__ __forceinline__ void reduce(const Pool& p, const IN* x, int first, int column, Reduced (&strip)[STRIP]) {
    const int top = first * STEP_H - p.axis[1].before, left = column * STEP_W - p.axis[2].before;
    const int last_h = p.axis[1].size - 1, last_w = p.axis[2].size - 1;
    const int step = ADJACENT ? 1 : (int)p.x_stride[4];
    Reduced rows[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int h = max(min(top + i, last_h), 0);
        const IN* const row = at(x + left * step, h, p.x_stride[3]);
#pragma unroll
        for (int k = 0; k < KERNEL_W; ++k) {
            const bool inside = (unsigned)(left + k) <= (unsigned)last_w;
            const IN element = inside ? row[k * step] : convert<IN>(NOTHING);
            const Reduced one = reduced(p, element, max(min(left + k, last_w), 0));
            if (k) join(rows[i], one);
            else rows[i] = one;
        }
#if MODE == MAX
        rows[i].at += h * p.axis[2].size;
#else
        if (h != top + i) rows[i].value = 0;
#endif
    }
#pragma unroll
    for (int i = 0; i < STRIP; ++i) {
        strip[i] = rows[i * STEP_H];
#pragma unroll
        for (int kh = 1; kh < KERNEL_H; ++kh) join(strip[i], rows[i * STEP_H + kh]);
    }
}

__device__ __forceinline__ OUT finished(const Pool& p, const Reduced& all, int h, int w) {
    return finished(p, all, [&](bool include_pad) {
        return counted<DENSE>(p.axis[1], h, include_pad) * counted<DENSE>(p.axis[2], w, include_pad);
    });
}
#endif

#if KERNEL_H && TRANSPOSED
// A block makes the strips of 32 channels, 32 strips (of numbers of 8 bytes 16, for shared memory's sake) that follow each
// other in a plane. A warp reads 32 channels at one position, and writes 32 columns of one channel.
#define CHANNELS 32
#define STRIPS (sizeof(OUT) > 4 ? 16 : 32)

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) pool(const __grid_constant__ Pool p) {
    // One channel more than there are: neighbouring strips of a channel lie in different banks.
    __shared__ OUT values[STRIP][STRIPS][CHANNELS + 1];
    __shared__ int places[INDICES ? STRIP : 1][STRIPS][CHANNELS + 1];
    const int thread = threadIdx.x;
    const int tile = divide(blockIdx.x, p.box.channels), n = divide(tile, p.box.axis[1]);
    const int first_c = (blockIdx.x - tile * (int)p.box.channels.divisor) * CHANNELS;
    const int first_strip = (tile - n * (int)p.box.axis[1].divisor) * STRIPS;

    const int c = thread % CHANNELS;
    const IN* const x = (const IN*)p.x + n * p.x_stride[0] + min(first_c + c, p.channels - 1) * p.x_stride[1];
    for (int s = thread / CHANNELS; s < STRIPS; s += ELEMENT_THREADS / CHANNELS) {
        const int strip = min(first_strip + s, p.count - 1);
        const int row = divide(strip, p.box.axis[2]), column = strip - row * (int)p.box.axis[2].divisor;
        Reduced made[STRIP];
        reduce(p, x, row * STRIP, column, made);
#pragma unroll
        for (int i = 0; i < STRIP; ++i) {
            values[i][s][c] = finished(p, made[i], row * STRIP + i, column);
#if INDICES
            places[i][s][c] = made[i].at;
#endif
        }
    }
    __syncthreads();

    const int s = thread % STRIPS, strip = first_strip + s;
    if (strip >= p.count) return;
    const int row = divide(strip, p.box.axis[2]), column = strip - row * (int)p.box.axis[2].divisor;
    for (int c = thread / STRIPS; c < min(CHANNELS, p.channels - first_c); c += ELEMENT_THREADS / STRIPS) {
        const Element e = {n, first_c + c, {0, row * STRIP, column}};
        OUT* const y = (OUT*)p.y + distance(e, p.y_stride);
        long long* const indices = (long long*)p.indices + distance(e, p.indices_stride);
#pragma unroll
        for (int i = 0; i < STRIP; ++i) {
            if (row * STRIP + i >= p.axis[1].out) break;
            if (p.y) y[i * (int)p.y_stride[3]] = values[i][s][c];
            if (INDICES) indices[i * (int)p.indices_stride[3]] = places[i][s][c];
        }
    }
}

#elif KERNEL_H
extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) pool(const __grid_constant__ Pool p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = strip_of(number, p.box);
    const int first = e.at[1] * STRIP, column = e.at[2];
    Reduced made[STRIP];
    reduce(p, (const IN*)p.x + near_plane(e, p.x_stride), first, column, made);
    OUT* y = at((OUT*)p.y + near_plane(e, p.y_stride) + column * (int)p.y_stride[4], first, p.y_stride[3]);
    long long* indices = at((long long*)p.indices + near_plane(e, p.indices_stride) + column * (int)p.indices_stride[4],
                            first, p.indices_stride[3]);
#pragma unroll
    for (int i = 0; i < STRIP; ++i) {
        if (first + i >= p.axis[1].out) break;
        if (!INDICES || p.y) *y = finished(p, made[i], first + i, column);
        y += p.y_stride[3];
#if INDICES
        *indices = made[i].at;
        indices += p.indices_stride[3];
#endif
    }
}

#else
extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) pool(const __grid_constant__ Pool p) {
    const int thread = blockIdx.x * ELEMENT_THREADS + threadIdx.x, lane = thread % GROUP;
    const Element e = element(min(thread, p.count - 1) / GROUP, p.box);
    const IN* const x = (const IN*)p.x + plane(e, p.x_stride);
    const Range one = {0, 1, 1}, d = WINDOWS == WHOLE ? one : window<WINDOWS>(p.axis[0], e.at[0]),
                h = WINDOWS == WHOLE ? one : window<WINDOWS>(p.axis[1], e.at[1]), w = window<WINDOWS>(p.axis[2], e.at[2]);
    const long long apart = GROUP * w.step * p.x_stride[4];

#if MODE == MAX
    Reduced all = reduced(p, x[d.begin * p.x_stride[2] + h.begin * p.x_stride[3] + w.begin * p.x_stride[4]],
                          (d.begin * p.axis[1].size + h.begin) * p.axis[2].size + w.begin);
#else
    Reduced all = {0};
#endif
    for (int i = d.begin; i < d.end; i += d.step)
        for (int j = h.begin; j < h.end; j += h.step) {
            int k = w.begin + lane * w.step;
            const IN* next = x + i * p.x_stride[2] + j * p.x_stride[3] + k * p.x_stride[4];
            const int flat = (i * p.axis[1].size + j) * p.axis[2].size;
            while (k < w.end)
#pragma unroll
                for (int load = 0; load < LOADS; ++load) {
                    const IN element = k < w.end ? *next : convert<IN>(NOTHING);
                    join(all, reduced(p, element, flat + k));
                    k += GROUP * w.step, next += apart;
                }
        }
#if GROUP > 1
#pragma unroll
    for (int apart = GROUP / 2; apart; apart /= 2) all.value += __shfl_xor_sync(0xffffffffu, all.value, apart);
#endif

    if (thread >= p.count || lane) return;
    if (!INDICES || p.y)
        ((OUT*)p.y)[distance(e, p.y_stride)] = finished(p, all, [&](bool include_pad) {
            return (long long)counted<WINDOWS>(p.axis[0], e.at[0], include_pad) *
                   counted<WINDOWS>(p.axis[1], e.at[1], include_pad) * counted<WINDOWS>(p.axis[2], e.at[2], include_pad);
        });
#if INDICES
    ((long long*)p.indices)[distance(e, p.indices_stride)] = all.at;
#endif
}
#endif
