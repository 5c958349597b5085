// The element types of fastconv.spec.DTYPES under the names they have there, and how one becomes another.
//
// Header-free: NVRTC alone compiles it. Halves are kept as their bits; arithmetic is done in the type a kernel is
// told to sum in (SUM), so nothing here needs cuda_fp16.h.
#pragma once
#include "ptx.cuh"

typedef float float32;
typedef double float64;
typedef signed char int8;
typedef unsigned char uint8;
typedef short int16;
typedef unsigned short uint16;
typedef int int32;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

// convert<To>(value): widening is exact, narrowing rounds to nearest even, integers wrap.
template <typename To, typename From>
struct Conversion {
    static __device__ __forceinline__ To of(From value) { return (To)value; }
};

template <typename Same>
struct Conversion<Same, Same> {
    static __device__ __forceinline__ Same of(Same value) { return value; }
};

template <typename To>
struct Conversion<To, float16> {
    static __device__ __forceinline__ To of(float16 value) { return (To)half_to_float(value.bits); }
};

template <typename To>
struct Conversion<To, bfloat16> {
    // The upper half of a binary32 number.
    static __device__ __forceinline__ To of(bfloat16 value) { return (To)bits_to_float((unsigned)value.bits << 16); }
};

template <typename From>
struct Conversion<float16, From> {
    static __device__ __forceinline__ float16 of(From value) {
        float16 rounded = {float_to_half((float)value)};
        return rounded;
    }
};

template <typename From>
struct Conversion<bfloat16, From> {
    static __device__ __forceinline__ bfloat16 of(From value) {
        const unsigned bits = float_to_bits((float)value);
        // Half of the last kept place, less one where that place is even: ties go to even. A NaN must stay one.
        const unsigned rounded = bits + 0x7fff + ((bits >> 16) & 1);
        const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
        bfloat16 kept = {(unsigned short)((is_nan ? bits | 0x400000 : rounded) >> 16)};
        return kept;
    }
};

// Which of the general pairs is meant where both ends are halves: none rounds twice, for each fits in a float.
template <> struct Conversion<float16, float16> {
    static __device__ __forceinline__ float16 of(float16 value) { return value; }
};
template <> struct Conversion<bfloat16, bfloat16> {
    static __device__ __forceinline__ bfloat16 of(bfloat16 value) { return value; }
};
template <> struct Conversion<float16, bfloat16> {
    static __device__ __forceinline__ float16 of(bfloat16 value) {
        return Conversion<float16, float>::of(Conversion<float, bfloat16>::of(value));
    }
};
template <> struct Conversion<bfloat16, float16> {
    static __device__ __forceinline__ bfloat16 of(float16 value) {
        return Conversion<bfloat16, float>::of(Conversion<float, float16>::of(value));
    }
};

template <typename To, typename From>
__device__ __forceinline__ To convert(From value) { return Conversion<To, From>::of(value); }
