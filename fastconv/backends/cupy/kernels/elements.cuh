// One thread for one element of an array of images: which element, and where it lies.
#pragma once
#include "geometry.cuh"

// Launch bounds that ask for one such block at least: told nothing, ptxas holds itself to 32 or 48 registers on sm_90a and
// later, and spills.
#define ELEMENT_THREADS 256

// How element numbers of (n, c, d, h, w) in C order fall apart; there are fewer than 2**31 in a launch.
struct Box {
    Divisor axis[AXES];
    Divisor channels;
};

struct Element {
    int n, c;
    int at[AXES];
};

__device__ __forceinline__ Element element(int number, const Box& box) {
    Element found;
#pragma unroll
    for (int axis = AXES - 1; axis >= 0; --axis) {
        const int rest = divide(number, box.axis[axis]);
        found.at[axis] = number - rest * (int)box.axis[axis].divisor;
        number = rest;
    }
    found.n = divide(number, box.channels);
    found.c = number - found.n * (int)box.channels.divisor;
    return found;
}

// Elements from an array's first to that of plane (n, c), or to that at a position of the plane too.
__device__ __forceinline__ long long plane(const Element& e, const long long (&stride)[2 + AXES]) {
    return e.n * stride[0] + e.c * stride[1];
}
__device__ __forceinline__ long long distance(const Element& e, const long long (&stride)[2 + AXES]) {
    long long sum = plane(e, stride);
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) sum += e.at[axis] * stride[2 + axis];
    return sum;
}
