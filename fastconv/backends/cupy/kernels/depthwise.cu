// Convolution with few channels a group, directly: there is nothing to share but the weights.
//
//   result[n, r, q] = bias[r] + sum_{c, k} weight[r, c, k] * gathered[n, group(r) * channels + c, q * step + k * tap + start]
//
// A thread makes ROWS x COLUMNS neighbouring outputs and reads once what they share: for 4x4 of a 3x3 kernel 36 elements, in
// six rows of a number, a vector and a number, so that three questions a row tell what lies in the image. Memory lets an
// H200 take 57 instructions for an output in float32 (8 bytes at 4.1e12 a second, 9.2e11 instructions of 32 threads); it
// takes 27. Neighbouring threads have neighbouring columns, or where channels are neighbours in memory, channels: they
// read whole lines then, and each writes its columns into a row of its own.
//
// Forward and each phase of an input gradient are told apart by steps alone.
//
// Compiled in: IN, SUM, OUT, PADDING, ROWS, COLUMNS, and
//   KERNEL_H, KERNEL_W, STEP_H, STEP_W  the kernel, whose taps lie side by side (tap of 1), and the step between outputs;
//                     KERNEL_H 1: one row of it at a time; 0: any kernel, one output a thread
//   WIDTH             elements read at once: rows begin at multiples of it, and it divides their length; 0: neighbours lie
//                     apart, or padding shows elements
//   SKIP              elements of a first vector in front of the first that is needed
//   FLAT              whether there is one channel a group, one element along d, and the whole kernel is compiled in
//   STORED            elements written at once
#include "elements.cuh"
#include "gather.cuh"
#include "types.cuh"

struct Correlated { int size, columns, step, taps, tap, start; };  // along one axis

struct Depthwise {
    const void* gathered;
    const void* weight;
    const void* bias;  // of type OUT, or null
    void* result;
    long long gathered_stride[2 + AXES], result_stride[2 + AXES];  // n, c, d, h, w
    long long weight_group, weight_row, weight_channel, weight_tap[AXES];
    long long bias_stride;
    int count;        // threads with work: tiles of the result
    int channels;     // gathered channels of a group
    Divisor rows;     // result channels of a group
    Divisor fastest;  // channels of the result that neighbouring threads differ in; 1: they differ in columns
    Box box;          // of tiles
    Correlated axis[AXES];
};

template <typename T, int COUNT>
struct __align__(sizeof(T) * COUNT) Vector { T at[COUNT]; };

// So many strides on: of a compiled-in kernel 32 bits hold a stride's bytes, and it is one instruction.
template <typename T>
__device__ __forceinline__ T* on(T* from, int count, long long stride) {
    return KERNEL_H ? (T*)((char*)from + wide_product(count, (int)stride * (int)sizeof(T))) : from + count * stride;
}

#if KERNEL_H
constexpr int SPAN_H = (ROWS - 1) * STEP_H + KERNEL_H, SPAN_W = (COLUMNS - 1) * STEP_W + KERNEL_W;
constexpr int AT_ONCE = WIDTH ? WIDTH : 1, VECTORS = (SKIP + SPAN_W + AT_ONCE - 1) / AT_ONCE;

// The place of a padded axis' position, outside of the axis where a zero stands: one comparison tells, so none is made here.
__device__ __forceinline__ int shown(int position, int size) {
    return PADDING == ZEROS ? position : source<PADDING>(position, size);
}

// What one gathered plane adds to the sums, by KERNEL_H rows of the kernel; it is `inside` but where d lies in padding.
__device__ __forceinline__ void correlate(SUM (&sums)[ROWS][COLUMNS], const Depthwise& p, const IN* plane, bool inside,
                                          const IN* taps, int first_h, int first_w) {
    SUM weight[KERNEL_H][KERNEL_W];
#pragma unroll
    for (int kh = 0; kh < KERNEL_H; ++kh)
#pragma unroll
        for (int kw = 0; kw < KERNEL_W; ++kw)
            weight[kh][kw] = convert<SUM>(*on(on(taps, kh, p.weight_tap[1]), kw, p.weight_tap[2]));

    // Vectors of a row: how far from where it begins (with a WIDTH from the first), and whether they lie in the image. So
    // may outputs of a tile that there are not, whatever padding shows: they read nothing.
    int distance[VECTORS];
    bool there[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int w = shown(first_w - SKIP + v * AT_ONCE, p.axis[2].size);
        distance[v] = WIDTH ? v * AT_ONCE : w * (int)p.gathered_stride[4];
        there[v] = inside && (unsigned)w < (unsigned)p.axis[2].size;
    }
    if (WIDTH) plane += first_w - SKIP;
#pragma unroll
    for (int i = 0; i < SPAN_H; ++i) {
        const int h = shown(first_h + i, p.axis[1].size);
        const bool row_there = (unsigned)h < (unsigned)p.axis[1].size;
        const IN* const row = on(plane, h, p.gathered_stride[3]);
        SUM values[SPAN_W];
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            const int begin = v * AT_ONCE - SKIP, first = begin < 0 ? 0 : begin;
            const int end = begin + AT_ONCE < SPAN_W ? begin + AT_ONCE : SPAN_W;
            const bool read = row_there && there[v];
            if (end - first == 1) {
                values[first] = read ? convert<SUM>(row[distance[v] + first - begin]) : (SUM)0;
            } else {
                Vector<IN, AT_ONCE> found = {};
                if (read) found = *(const Vector<IN, AT_ONCE>*)(row + distance[v]);
#pragma unroll
                for (int j = first; j < end; ++j) values[j] = convert<SUM>(found.at[j - begin]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int kh = i - r * STEP_H;
            if (kh < 0 || kh >= KERNEL_H) continue;
#pragma unroll
            for (int kw = 0; kw < KERNEL_W; ++kw)
#pragma unroll
                for (int q = 0; q < COLUMNS; ++q) sums[r][q] += weight[kh][kw] * values[q * STEP_W + kw];
        }
    }
}
#else
__device__ __forceinline__ void correlate(SUM (&sums)[1][1], const Depthwise& p, const IN* plane, bool inside,
                                          const IN* taps, int first_h, int first_w) {
    const int h = source<PADDING>(first_h, p.axis[1].size);
    for (int kw = 0; kw < p.axis[2].taps; ++kw) {
        const int w = source<PADDING>(first_w + kw * p.axis[2].tap, p.axis[2].size);
        const bool read = inside && h >= 0 && w >= 0;
        const SUM value = read ? convert<SUM>(plane[h * p.gathered_stride[3] + w * p.gathered_stride[4]]) : (SUM)0;
        sums[0][0] += convert<SUM>(taps[kw * p.weight_tap[2]]) * value;
    }
}
#endif

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) depthwise(const __grid_constant__ Depthwise p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const int rest = divide(number, p.fastest);
    Element e = element(rest, p.box);
    e.c += number - rest * (int)p.fastest.divisor;
    const int group = divide(e.c, p.rows), row = e.c - group * (int)p.rows.divisor;
    const int out_h = e.at[1] * ROWS, out_w = e.at[2] * COLUMNS;
    const int first_h = out_h * p.axis[1].step + p.axis[1].start, first_w = out_w * p.axis[2].step + p.axis[2].start;
    const IN* const image = on((const IN*)p.gathered, e.n, p.gathered_stride[0]);
    const IN* const weights = on(on((const IN*)p.weight, group, p.weight_group), row, p.weight_row);

    SUM sums[ROWS][COLUMNS] = {};
#if FLAT
    correlate(sums, p, on(image, group, p.gathered_stride[1]), true, weights, first_h, first_w);
#else
    for (int c = 0; c < p.channels; ++c)
        for (int kd = 0; kd < p.axis[0].taps; ++kd) {
            const int d = source<PADDING>(e.at[0] * p.axis[0].step + kd * p.axis[0].tap + p.axis[0].start, p.axis[0].size);
            const IN* const plane = on(on(image, group * p.channels + c, p.gathered_stride[1]), d, p.gathered_stride[2]);
            const IN* const taps = on(on(weights, c, p.weight_channel), kd, p.weight_tap[0]);
            for (int kh = 0; kh < p.axis[1].taps; kh += KERNEL_H ? KERNEL_H : 1)
                correlate(sums, p, plane, d >= 0, on(taps, kh, p.weight_tap[1]), first_h + kh * p.axis[1].tap, first_w);
        }
#endif

    const SUM bias = p.bias ? convert<SUM>(*on((const OUT*)p.bias, e.c, p.bias_stride)) : (SUM)0;
    OUT* result = on(on((OUT*)p.result, e.n, p.result_stride[0]), e.c, p.result_stride[1]);
    result = on(on(on(result, e.at[0], p.result_stride[2]), out_h, p.result_stride[3]), out_w, p.result_stride[4]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (out_h + r >= p.axis[1].columns) break;
#pragma unroll
        for (int q = 0; q < COLUMNS; q += STORED) {
            if (out_w + q >= p.axis[2].columns) break;
            Vector<OUT, STORED> made;
#pragma unroll
            for (int j = 0; j < STORED; ++j) made.at[j] = convert<OUT>(sums[r][q + j] + bias);
            *(Vector<OUT, STORED>*)on(on(result, r, p.result_stride[3]), q, p.result_stride[4]) = made;
        }
    }
}
