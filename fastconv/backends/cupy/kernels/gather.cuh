// Reading an array of images at a place that may lie in its padding.
#pragma once
#include "geometry.cuh"

// Values of PADDING: the index of the mode in fastconv.spec.PADDING_MODES, and zeros that products find by bits (product.cuh).
#define ZEROS 0
#define REFLECT 1
#define REPLICATE 2
#define CIRCULAR 3
#define SYMMETRIC 4
#define MASKED 5

// The element that stands at position `i` of a padded axis; -1 is a zero (fastconv.spec.source).
template <int MODE>
__device__ __forceinline__ int source(int i, int size) {
    if (0 <= i && i < size) return i;
    if (MODE == REFLECT) return i < 0 ? -i : 2 * (size - 1) - i;
    if (MODE == REPLICATE) return i < 0 ? 0 : size - 1;
    if (MODE == CIRCULAR) return i < 0 ? i + size : i - size;
    if (MODE == SYMMETRIC) return i < 0 ? -i - 1 : 2 * size - 1 - i;
    return -1;
}
