// Pooling windows along one axis (fastconv.spec.PoolSpec.windows, and its inverse).
#pragma once
#include "elements.cuh"
#include "ptx.cuh"

// How windows lie, compiled in as WINDOWS: nothing is divided by what is 1, and no product is wider than it must be.
#define DENSE 0      // their elements side by side
#define DILATED 1
#define BINS 2       // adaptive
#define WIDE_BINS 3  // adaptive, and size * out is past 31 bits
#define WHOLE 4      // one window, which is the plane; for pool.cu a plane of one axis

struct Window {
    int size, out;  // positions of the input and of the output
    int extent;     // input positions a window spans; of bins nothing
    int stride, before, after;
    Divisor by_size, by_out, by_stride, by_dilation;
};

// Positions begin, begin + step, ... under end.
struct Range { int begin, end, step; };

// What piece `i` covers where `size` positions are cut into as many pieces as `by` divides by.
template <int KIND>
__device__ __forceinline__ Range piece(int i, int size, const Divisor& by) {
    const int pieces = (int)by.divisor;
    Range range = {0, 0, 1};
    if (KIND == WIDE_BINS) {
        range.begin = (int)((long long)i * size / pieces);
        range.end = (int)(((long long)(i + 1) * size + pieces - 1) / pieces);
    } else {
        range.begin = divide(i * size, by);
        range.end = divide((i + 1) * size + pieces - 1, by);
    }
    return range;
}

// The input positions that output position `i` reduces.
template <int KIND>
__device__ __forceinline__ Range window(const Window& w, int i) {
    const Range all = {0, w.size, 1};
    if (KIND == WHOLE) return all;
    if (KIND >= BINS) return piece<KIND>(i, w.size, w.by_out);
    const int start = i * w.stride - w.before;
    Range range = {max(start, 0), min(start + w.extent, w.size), 1};
    if (KIND == DILATED) {
        range.step = (int)w.by_dilation.divisor;
        // A window that begins in the padding begins, for the input, at its first tap inside.
        if (start < 0) range.begin = start + divide(range.step - 1 - start, w.by_dilation) * range.step;
    }
    return range;
}

template <int KIND>
__device__ __forceinline__ int length(const Window& w, const Range& range) {
    const int span = range.end - range.begin;
    return KIND == DILATED ? divide(span + range.step - 1, w.by_dilation) : span;
}

// What an average divides by along this axis; padding counts up to the end of the padded input, no further.
template <int KIND>
__device__ __forceinline__ int counted(const Window& w, int i, bool include_pad) {
    if (!include_pad) return length<KIND>(w, window<KIND>(w, i));
    return min(w.extent, w.size + w.after - (i * w.stride - w.before));
}

// The output positions whose windows may hold input position `i`: all do where windows are not dilated.
template <int KIND>
__device__ __forceinline__ Range holders(const Window& w, int i) {
    const Range one = {0, 1, 1};
    if (KIND == WHOLE) return one;
    if (KIND >= BINS) return piece<KIND>(i, w.out, w.by_size);
    const int place = i + w.before, first = place - w.extent + 1;
    const Range range = {first > 0 ? divide(first - 1, w.by_stride) + 1 : 0, min(divide(place, w.by_stride) + 1, w.out), 1};
    return range;
}

template <int KIND>
__device__ __forceinline__ bool holds(const Window& w, int o, int i) {
    if (KIND != DILATED) return true;
    const int ahead = i + w.before - o * w.stride;
    return ahead == divide(ahead, w.by_dilation) * (int)w.by_dilation.divisor;
}

// Where windows are small, strides along axes fit in 31 bits, counted in bytes, and so do those of channels and images,
// counted in elements, which are not negative: one instruction finds an address.
template <typename T>
__device__ __forceinline__ T* at(T* first, int position, long long stride) {
    return (T*)((char*)first + (long long)position * (int)(stride * (int)sizeof(T)));
}
__device__ __forceinline__ long long near_plane(const Element& e, const long long (&stride)[2 + AXES]) {
    return (unsigned long long)(unsigned)e.n * (unsigned)stride[0] + (unsigned long long)(unsigned)e.c * (unsigned)stride[1];
}

// A strip of a plane of rows and columns alone.
__device__ __forceinline__ Element strip_of(int number, const Box& box) {
    const int row = divide(number, box.axis[2]), plane = divide(row, box.axis[1]), n = divide(plane, box.channels);
    const Element e = {n, plane - n * (int)box.channels.divisor,
                       {0, row - plane * (int)box.axis[1].divisor, number - row * (int)box.axis[2].divisor}};
    return e;
}

// sum / divisor by the inverse: the rest of a first quotient, which a fused multiplication finds exactly, puts its last bit
// right. Four instructions; a division has twelve, and a branch.
template <typename T>
__device__ __forceinline__ T quotient(T sum, T divisor, T inverse) {
    const T first = sum * inverse, rest = sum - first * divisor;
    return rest == rest ? first + rest * inverse : first;  // an infinity has no rest
}

// Below everything: minus infinity, or the least whole number.
template <typename T>
__device__ __forceinline__ T lowest() {
    if ((T)0.5 != 0) return (T)bits_to_float(0xff800000);
    return (T)-1 > 0 ? (T)0 : (T)(~0ull << (8 * sizeof(T) - 1));
}
