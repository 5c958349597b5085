// Pooling windows along one axis (fastconv.spec.PoolSpec.windows, and its inverse).
#pragma once
#include "elements.cuh"

struct Window {
    int size, out;       // positions of the input and of the output
    int extent;          // input positions a window spans; 0 stands for adaptive bins
    int stride, dilation;
    int before, after;
};

// Positions begin, begin + step, ... under end.
struct Range { int begin, end, step; };

// The input positions that output position `i` reduces.
__device__ __forceinline__ Range window(const Window& w, int i) {
    Range range;
    if (!w.extent) {
        range.begin = (int)((long long)i * w.size / w.out);
        range.end = (int)(((long long)(i + 1) * w.size + w.out - 1) / w.out);
        range.step = 1;
        return range;
    }
    const int start = i * w.stride - w.before;
    range.step = w.dilation;
    range.end = min(start + w.extent, w.size);
    // A window that begins in the padding begins, for the input, at its first tap inside.
    range.begin = start;
    if (start < 0) range.begin = (w.dilation - -start % w.dilation) % w.dilation;
    return range;
}

__device__ __forceinline__ int length(const Range& range) {
    return (range.end - range.begin + range.step - 1) / range.step;
}

// What an average divides by along this axis; padding counts up to the end of the padded input, no further.
__device__ __forceinline__ int padded_length(const Window& w, int i) {
    return min(w.extent, w.size + w.after - (i * w.stride - w.before));
}

// The output positions whose windows may hold input position `i`: all do where the dilation is 1.
__device__ __forceinline__ Range holders(const Window& w, int i) {
    Range range;
    range.step = 1;
    if (!w.extent) {
        range.begin = (int)((long long)i * w.out / w.size);
        range.end = (int)(((long long)(i + 1) * w.out + w.size - 1) / w.size);
        return range;
    }
    const int first = i + w.before - w.extent + 1;
    range.begin = first > 0 ? (first - 1) / w.stride + 1 : 0;
    range.end = min((i + w.before) / w.stride + 1, w.out);
    return range;
}

__device__ __forceinline__ bool holds(const Window& w, int o, int i) {
    return !w.extent || w.dilation == 1 || (i + w.before - o * w.stride) % w.dilation == 0;
}
