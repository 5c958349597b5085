// The positions of a padded axis that show one element of it: its own, and those of the padding that repeat it.
#pragma once
#include "gather.cuh"

// The first of them from `p` on; past the end where there is none. Only the padding is looked through.
template <int MODE>
__device__ __forceinline__ int next_shown(int p, int i, int size, int after) {
    if (MODE == ZEROS) return p <= i ? i : size + after;
    for (; p < size + after; ++p) {
        if (source<MODE>(p, size) == i) return p;
        if (0 <= p && p < size) p = p < i ? i - 1 : size - 1;
    }
    return p;
}

// A loop over them, for an element at `at` of axes described by p.size, p.before and p.after.
#define EACH_SHOWN(name, axis, at, p)                                                                              \
    for (int name = next_shown<PADDING>(-(p).before[axis], (at)[axis], (p).size[axis], (p).after[axis]);           \
         name < (p).size[axis] + (p).after[axis];                                                                  \
         name = next_shown<PADDING>(name + 1, (at)[axis], (p).size[axis], (p).after[axis]))
