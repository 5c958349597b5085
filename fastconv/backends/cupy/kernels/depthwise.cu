// Convolution with few channels a group, directly: there is nothing to share but the weights.
//
//   result[n, r, q] = bias[r] + sum_{c, k} weight[r, c, k] * gathered[n, group(r) * channels + c, q * step + k * tap + start]
//
// A thread makes STRIP outputs below each other: neighbouring threads read and write neighbouring columns, and a row read
// once serves every output of the strip it belongs to. Forward and each phase of an input gradient are told apart by
// steps alone.
//
// Compiled in: IN, SUM, OUT, PADDING, STRIP, and KERNEL_H and STEP_H, the kernel's rows and the step between outputs'
// rows, for kernels whose rows lie side by side (tap of 1); KERNEL_H 0: any, with a STRIP of 1.
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
    int count;     // threads with work: strips of the result
    int channels;  // gathered channels of a group
    Divisor rows;  // result channels of a group
    Box box;       // of strips
    Correlated axis[AXES];
};

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) depthwise(const __grid_constant__ Depthwise p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = element(number, p.box);
    const int group = divide(e.c, p.rows), row = e.c - group * (int)p.rows.divisor;
    const int first_h = e.at[1] * STRIP;
    const IN* const image = (const IN*)p.gathered + e.n * p.gathered_stride[0];
    const IN* const weights = (const IN*)p.weight + group * p.weight_group + row * p.weight_row;

    SUM sums[STRIP] = {};
    for (int c = 0; c < p.channels; ++c) {
        const IN* const gathered = image + (group * p.channels + c) * p.gathered_stride[1];
        for (int kd = 0; kd < p.axis[0].taps; ++kd) {
            const int d = source<PADDING>(e.at[0] * p.axis[0].step + kd * p.axis[0].tap + p.axis[0].start, p.axis[0].size);
            for (int kw = 0; kw < p.axis[2].taps; ++kw) {
                const int w = source<PADDING>(e.at[2] * p.axis[2].step + kw * p.axis[2].tap + p.axis[2].start, p.axis[2].size);
                const IN* const column = gathered + d * p.gathered_stride[2] + w * p.gathered_stride[4];
                const IN* const taps = weights + c * p.weight_channel + kd * p.weight_tap[0] + kw * p.weight_tap[2];
                const bool outside = d < 0 || w < 0;
                auto value = [&](int position) {
                    const int h = source<PADDING>(position + p.axis[1].start, p.axis[1].size);
                    return outside || h < 0 ? (SUM)0 : convert<SUM>(column[h * p.gathered_stride[3]]);
                };
#if KERNEL_H
                SUM values[(STRIP - 1) * STEP_H + KERNEL_H];
#pragma unroll
                for (int i = 0; i < (STRIP - 1) * STEP_H + KERNEL_H; ++i) values[i] = value(first_h * STEP_H + i);
#pragma unroll
                for (int kh = 0; kh < KERNEL_H; ++kh) {
                    const SUM weight = convert<SUM>(taps[kh * p.weight_tap[1]]);
#pragma unroll
                    for (int i = 0; i < STRIP; ++i) sums[i] += weight * values[i * STEP_H + kh];
                }
#else
                for (int kh = 0; kh < p.axis[1].taps; ++kh)
                    sums[0] += convert<SUM>(taps[kh * p.weight_tap[1]]) *
                               value(first_h * p.axis[1].step + kh * p.axis[1].tap);
#endif
            }
        }
    }

    const SUM bias = p.bias ? convert<SUM>(((const OUT*)p.bias)[e.c * p.bias_stride]) : (SUM)0;
    OUT* const result = (OUT*)p.result + plane(e, p.result_stride) + e.at[0] * p.result_stride[2] +
                        e.at[2] * p.result_stride[4];
#pragma unroll
    for (int i = 0; i < STRIP; ++i)
        if (first_h + i < p.axis[1].columns)
            result[(first_h + i) * p.result_stride[3]] = convert<OUT>(sums[i] + bias);
}
