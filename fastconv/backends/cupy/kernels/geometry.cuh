// Numbers that are sums over mixed-radix digits: how a row or a column of a product finds its place in arrays.
//
// fastconv/backends/cupy/geometry.py holds the same structs as NumPy types and fills them from a spec; a test compares
// every offset. Positions and counts are below 2**31, which the planners see to; distances in memory are 64-bit.
#pragma once
#include "ptx.cuh"

#define AXES 3    // d, h, w; problems of lower rank have leading axes of one element
#define DIGITS 4  // three axes and one of channels or images

// Division by a number known on the host, for 0 <= n < 2**31: n / divisor = high(n * magic) >> shift
// (Granlund and Montgomery, Division by invariant integers using multiplication, 1994).
struct Divisor {
    unsigned divisor;
    unsigned magic;  // 0 stands for division by one
    unsigned shift;
};

__device__ __forceinline__ int divide(int n, const Divisor& by) {
    return by.magic ? (int)(high_product((unsigned)n, by.magic) >> by.shift) : n;
}

// One digit of an index: each unit of it moves the place it stands for.
struct Digit {
    Divisor radix;
    unsigned bit;        // of its first element, where it counts a kernel's elements along an axis; else 0
    int step[AXES];      // positions along each axis of the gathered array
    long long gathered;  // elements in the gathered array
    long long other;     // elements in the dense operand (of a row) or in the result (of a column)
};

// Where an index has led: positions may lie outside of the gathered array, which reads as zero.
struct Place {
    int position[AXES];
    unsigned taken;  // one bit for each axis: the kernel's element there
    long long gathered;
    long long other;
};

__device__ __forceinline__ Place nowhere() {
    Place place = {{0, 0, 0}, 0, 0, 0};
    return place;
}

// The digits of `index`, the first running fastest; the last takes what is left.
__device__ __forceinline__ Place locate(int index, const Digit (&digits)[DIGITS]) {
    Place place = nowhere();
#pragma unroll
    for (int i = 0; i < DIGITS; ++i) {
        const int rest = i < DIGITS - 1 ? divide(index, digits[i].radix) : 0;
        const int digit = index - rest * (int)digits[i].radix.divisor;
#pragma unroll
        for (int axis = 0; axis < AXES; ++axis) place.position[axis] += digit * digits[i].step[axis];
        place.taken |= digits[i].bit << (digit & 31);
        place.gathered += digit * digits[i].gathered;
        place.other += digit * digits[i].other;
        index = rest;
    }
    return place;
}
