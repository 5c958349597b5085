// Reading an array of images at a place that may lie in its padding.
#pragma once
#include "geometry.cuh"

// Values of PADDING, the index of the mode in fastconv.spec.PADDING_MODES.
#define ZEROS 0
#define REFLECT 1
#define REPLICATE 2
#define CIRCULAR 3
#define SYMMETRIC 4

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

// Where the sum of two places lies: false in the padding of zeros, else its distance in elements.
//
// Padded with zeros, distances of places are whole ones: nothing is multiplied here. In the other modes they count
// channels and images alone, and the axes are counted here, after `source`.
template <int MODE>
__device__ __forceinline__ bool reach(const Place& row, const Place& column, const int (&size)[AXES],
                                      const long long (&stride)[AXES], long long& distance) {
    distance = row.gathered + column.gathered;
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) {
        const int position = row.position[axis] + column.position[axis];
        if (MODE == ZEROS) {
            inside = inside && (unsigned)position < (unsigned)size[axis];
        } else {
            distance += source<MODE>(position, size[axis]) * stride[axis];
        }
    }
    return inside;
}
