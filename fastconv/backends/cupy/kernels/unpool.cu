// Unpooling and its gradient: values go to, or come from, the positions that indices name.
//
// Where two values are sent to one position the one further back wins, as in plain loops; who that is a first kernel
// finds with integer maxima, whose order does not matter: the bits are the same each time. Indices outside of the plane
// are left out.
//
// STEP 0  claim   winner[n, c, index] = the largest q that names it      (winner: int32, all -1 before)
// STEP 1  take    result[n, c, i] = values[n, c, winner[n, c, i]], or 0
// STEP 2  gather  result[n, c, q] = values[n, c, index]                  (the gradient)
//
// Compiled in: TYPE (types.cuh), STEP.
#include "elements.cuh"
#include "types.cuh"

struct Unpool {
    const void* values;
    const void* indices;
    void* winner;
    void* result;
    long long values_stride[2 + AXES], indices_stride[2 + AXES], result_stride[2 + AXES];
    int count;        // of indices (claim, gather) or of the result (take)
    int plane;        // positions of an unpooled plane
    Box box;          // of what is counted
    Divisor size[AXES];  // of the plane that indices point into (gather), or of the one they lie in (take)
};

__device__ __forceinline__ long long at(const Divisor (&size)[AXES], int flat, const long long (&stride)[2 + AXES]) {
    long long sum = 0;
#pragma unroll
    for (int axis = AXES - 1; axis >= 0; --axis) {
        const int rest = divide(flat, size[axis]);
        sum += (flat - rest * (int)size[axis].divisor) * stride[2 + axis];
        flat = rest;
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS, 1) unpool(const __grid_constant__ Unpool p) {
    const int number = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (number >= p.count) return;
    const Element e = element(number, p.box);
    const int planes = e.n * (int)p.box.channels.divisor + e.c;
    const TYPE* const values = (const TYPE*)p.values + plane(e, p.values_stride);
#if STEP == 1
    TYPE value = {};
    const int winner = ((const int*)p.winner)[number];
    if (winner >= 0) value = values[at(p.size, winner, p.values_stride)];
    ((TYPE*)p.result)[distance(e, p.result_stride)] = value;
#else
    const long long index = ((const long long*)p.indices)[distance(e, p.indices_stride)];
    const bool inside = 0 <= index && index < p.plane;
#if STEP == 0
    const int own = number - planes * (int)(p.box.axis[0].divisor * p.box.axis[1].divisor * p.box.axis[2].divisor);
    if (inside) atomicMax((int*)p.winner + (long long)planes * p.plane + index, own);
#else
    TYPE value = {};
    if (inside) value = values[at(p.size, (int)index, p.values_stride)];
    ((TYPE*)p.result)[distance(e, p.result_stride)] = value;
#endif
#endif
}
