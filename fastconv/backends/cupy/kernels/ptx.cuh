// Every instruction that C++ has no word for, each with what it means in C++.
//
// The PTX body is what a GPU runs (NVRTC defines __CUDACC_RTC__), the C++ body what the CPU emulation of these sources
// runs; wherever a GPU is found the tests compare the two.
#pragma once

__device__ __forceinline__ float half_to_float(unsigned short bits) {
#ifdef __CUDACC_RTC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    _Float16 value;
    __builtin_memcpy(&value, &bits, 2);
    return (float)value;
#endif
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
#ifdef __CUDACC_RTC__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    const _Float16 rounded = (_Float16)value;
    unsigned short bits;
    __builtin_memcpy(&bits, &rounded, 2);
    return bits;
#endif
}

__device__ __forceinline__ float bits_to_float(unsigned bits) {
#ifdef __CUDACC_RTC__
    return __uint_as_float(bits);
#else
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
#endif
}

__device__ __forceinline__ unsigned float_to_bits(float value) {
#ifdef __CUDACC_RTC__
    return __float_as_uint(value);
#else
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
#endif
}

// The upper 32 bits of a product of 64.
__device__ __forceinline__ unsigned high_product(unsigned a, unsigned b) {
#ifdef __CUDACC_RTC__
    return __umulhi(a, b);
#else
    return (unsigned)((unsigned long long)a * b >> 32);
#endif
}

// Header-free C++ knows no mathematics; NVRTC and g++ each have these built in under other names.
__device__ __forceinline__ float power(float base, float exponent) {
#ifdef __CUDACC_RTC__
    return powf(base, exponent);
#else
    return __builtin_powf(base, exponent);
#endif
}
__device__ __forceinline__ double power(double base, double exponent) {
#ifdef __CUDACC_RTC__
    return pow(base, exponent);
#else
    return __builtin_pow(base, exponent);
#endif
}
__device__ __forceinline__ float root(float value) {
#ifdef __CUDACC_RTC__
    return sqrtf(value);
#else
    return __builtin_sqrtf(value);
#endif
}
__device__ __forceinline__ double root(double value) {
#ifdef __CUDACC_RTC__
    return sqrt(value);
#else
    return __builtin_sqrt(value);
#endif
}
