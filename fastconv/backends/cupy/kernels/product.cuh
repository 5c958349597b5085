// The product that implicit_gemm.cu, implicit_gemm_mma.cu and thin_product.cu compute, each for its shapes.
#pragma once
#include "gather.cuh"

struct GatheredProduct {
    const void* gathered;
    const void* dense;
    const void* bias;  // of type OUT, or null
    void* result;
    long long dense_row, result_row, bias_row;  // elements from one m to the next
    long long gathered_group, dense_group, result_group, bias_group;
    long long result_split;           // elements from one part of k's sums to the next
    long long start;                  // of the gathered array: where position `origin` lies
    long long axis_stride[AXES];      // of the gathered array, for padding that is no zero
    int origin[AXES];                 // position of k = 0, j = 0
    int size[AXES];                   // positions of the gathered array
    int taps[AXES], tap[AXES];        // elements of the kernel, and positions from one to the next
    unsigned bit[AXES];               // of the first of them
    int M, N, K;
    int part;                         // of k that one block sums, a multiple of TILE_K
    int vector;                       // so many j, from a multiple of it, are neighbours in the result and begin at a
                                      // multiple of their size: 1, or what 8 or 16 bytes hold
    Divisor tiles_m, tiles_n, parts;  // digits of the block's number, the group being what is left
    Digit row[DIGITS], column[DIGITS];
};

// Rows and columns are one the kernel's elements (and channels), the other positions (and images). Each comes as a spot, which
// tells whether both together are inside of the gathered array. One that is not `there`, past the end of K or N, is inside
// with nobody.
template <int MODE>
struct Spot {
    int position[AXES];
    bool there;
};

// Padded with zeros, where kernels have up to 31 elements along their axes together: a bit for each of these. An element
// sets its own along every axis, a position those that it meets outside; one instruction compares them.
#define NOWHERE 0x80000000u
template <>
struct Spot<MASKED> {
    unsigned bits;
};

// Distances of rows, in elements: 32 bits where spots are bits.
template <int MODE> struct Distances { typedef long long type; };
template <> struct Distances<MASKED> { typedef int type; };

// A row, as everybody finds it in shared memory: its spot, and how far it leads in either operand.
template <int MODE>
struct __align__(16) Row {
    typename Distances<MODE>::type gathered;
    Spot<MODE> spot;
    typename Distances<MODE>::type other;
};

// ELEMENT: whether it is one of kernels' elements; positions begin at p.origin.
template <bool ELEMENT, int MODE>
__device__ __forceinline__ void find(Spot<MODE>& spot, const Place& place, bool there, const GatheredProduct& p) {
    spot.there = there;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) spot.position[axis] = place.position[axis] + (ELEMENT ? 0 : p.origin[axis]);
}
template <bool ELEMENT>
__device__ __forceinline__ void find(Spot<MASKED>& spot, const Place& place, bool there, const GatheredProduct& p) {
    if (ELEMENT) {
        spot.bits = there ? place.taken : NOWHERE;
        return;
    }
    spot.bits = there ? NOWHERE : ~0u;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis)
        for (int tap = 0, at = place.position[axis] + p.origin[axis]; tap < p.taps[axis]; ++tap, at += p.tap[axis])
            if ((unsigned)at >= (unsigned)p.size[axis]) spot.bits |= p.bit[axis] << tap;
}
template <bool ELEMENT, int MODE>
__device__ __forceinline__ void find(Row<MODE>& row, const Place& place, bool there, const GatheredProduct& p) {
    row.gathered = (typename Distances<MODE>::type)place.gathered;
    row.other = (typename Distances<MODE>::type)place.other;
    find<ELEMENT>(row.spot, place, there, p);
}

// Where a row leads from a column's place: false where that is no element, else `distance` in elements.
//
// Padded with zeros, distances of rows are whole ones: nothing is multiplied here. In the other modes they count channels
// or images alone, and the axes are counted here, after `source`.
template <int MODE>
__device__ __forceinline__ bool reach(const Row<MODE>& row, const Spot<MODE>& column, const GatheredProduct& p,
                                      long long& distance) {
    distance = row.gathered;
    bool inside = row.spot.there && column.there;
#pragma unroll
    for (int axis = 0; axis < AXES; ++axis) {
        const int position = row.spot.position[axis] + column.position[axis];
        if (MODE == ZEROS) {
            inside = inside && (unsigned)position < (unsigned)p.size[axis];
        } else {
            distance += source<MODE>(position, p.size[axis]) * p.axis_stride[axis];
        }
    }
    return inside;
}
__device__ __forceinline__ bool reach(const Row<MASKED>& row, const Spot<MASKED>& column, const GatheredProduct&,
                                      int& distance) {
    distance = row.gathered;
    return !(row.spot.bits & column.bits);
}
